// SPDX-License-Identifier: Apache-2.0
// tls.h: TLS of one connection (GnuTLS) as plain data, and the credentials that connections share.
// It uses no sockets: its owner moves ciphertext and plaintext.
//
// The owner calls, from tls_new() on:
//   tls_input(), tls_received(), tls_eof()  ciphertext in
//   tls_handshake()                         whenever ciphertext came, until it is done
//   tls_read(), tls_write()                 plaintext out of and into TLS, after the handshake
//   tls_output(), tls_sent()                ciphertext out, at any time
#ifndef LAZYCOW_SERVER_TLS_H
#define LAZYCOW_SERVER_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "qcow2/base/error.h"
#include "server/tls_options.h"

// The options and credentials that new connections begin with.
struct tls_server;
// TLS of one connection.
struct tls;

// Reads the files. options is copied, but its strings are borrowed; now is in seconds since 1970.
// Returns 0, or a negative errno with a message: also if a certificate has expired or is not valid
// yet, so that no client could connect.
int tls_server_new(struct tls_server **out, const struct tls_options *options, time_t now,
                   struct error *err);
// Frees it. Connections may outlive it.
void tls_server_free(struct tls_server *server);
// Reads the files again, for connections that begin from now on. Returns 0, or a negative errno
// with a message; then everything stays as it was.
int tls_server_reload(struct tls_server *server, time_t now, struct error *err);
// Returns a warning about the files that were read last, from index 0 on; NULL: there are no more.
const char *tls_server_warning(const struct tls_server *server, size_t index);
// Returns the time when the first of the certificates that clients need expires.
time_t tls_server_expires(const struct tls_server *server);

// Returns NULL when there is no memory.
struct tls *tls_new(const struct tls_server *server);
void tls_free(struct tls *tls);

// Sets iov to the buffer for ciphertext. Returns its size; 0: plaintext must be read first.
size_t tls_input(struct tls *tls, struct iovec *iov);
void tls_received(struct tls *tls, size_t bytes);
// Takes in that the peer sends no more bytes.
void tls_eof(struct tls *tls);

enum tls_progress {
    TLS_MORE, // needs more ciphertext
    TLS_DONE, // tls_read() and tls_write() may be used
    // tls_reason() has the reason. Send the output, which tells the peer, and close.
    TLS_FAILED,
};
enum tls_progress tls_handshake(struct tls *tls);

// Writes plaintext into the iovecs, as much as there is. Returns the number of bytes, > 0; 0 at the
// end, announced by the peer or not; -EAGAIN: more ciphertext is needed; -EPROTO: tls_reason() has
// the reason.
ssize_t tls_read(struct tls *tls, const struct iovec *iov, int count);

// Takes plaintext from the front of the iovecs, as far as there is room. Returns the number of
// bytes, which may be 0, or -EPROTO.
ssize_t tls_write(struct tls *tls, const struct iovec *iov, int count);

// Sets iov to ciphertext to be sent. Returns its size; 0: there is none.
size_t tls_output(struct tls *tls, struct iovec *iov);
void tls_sent(struct tls *tls, size_t bytes);

// Tells the peer, once, that no more plaintext follows.
void tls_bye(struct tls *tls);

// Returns the peer's proven identity: the distinguished name of its verified certificate (RFC
// 4514), or the name of its pre-shared key. NULL: the peer was not asked to prove one, or the
// handshake is not done.
const char *tls_identity(const struct tls *tls);
// Writes "TLS1.3, AES-256-GCM" and the like, for the log. Called after the handshake.
void tls_describe(const struct tls *tls, char *text, size_t size);
// Returns the reason of a failure in one line; "" before one.
const char *tls_reason(const struct tls *tls);

#endif
