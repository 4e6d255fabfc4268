// SPDX-License-Identifier: Apache-2.0
// tls.h: TLS of one connection (GnuTLS) as plain data, and the credentials that all have in common.
// No sockets: ciphertext is brought to it and taken from it, plaintext too.
//
// The owner's part, from tls_new() on:
//   tls_input(), tls_received(), tls_eof()  ciphertext in
//   tls_handshake()                         whenever some came, until it is done
//   tls_read(), tls_write()                 plaintext out of it and into it, from then on
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

// What new connections begin with.
struct tls_server;
// TLS of one connection.
struct tls;

// Reads the files. options is copied, its strings are borrowed; now is seconds since 1970. Returns 0,
// or a negative errno with a message: also where no client could connect with them, since a certificate
// has expired or is not valid yet.
int tls_server_new(struct tls_server **out, const struct tls_options *options, time_t now,
                   struct error *err);
// Connections may outlive it.
void tls_server_free(struct tls_server *server);
// Reads the files again, for connections that begin from now on. On failure everything stays as it
// was; returns a negative errno with a message.
int tls_server_reload(struct tls_server *server, time_t now, struct error *err);
// What is doubtful in the files that were read last, from index 0 on; NULL: that is all.
const char *tls_server_warning(const struct tls_server *server, size_t index);
// When the first of the certificates that clients need expires.
time_t tls_server_expires(const struct tls_server *server);

// Returns NULL when there is no memory.
struct tls *tls_new(const struct tls_server *server);
void tls_free(struct tls *tls);

// Where to receive ciphertext; returns the room in bytes, 0: plaintext must be read first.
size_t tls_input(struct tls *tls, struct iovec *iov);
void tls_received(struct tls *tls, size_t bytes);
// The peer will send no more.
void tls_eof(struct tls *tls);

enum tls_progress {
    TLS_MORE,   // needs more ciphertext
    TLS_DONE,   // tls_read() and tls_write() may be used
    TLS_FAILED, // tls_reason() says why; send the output, which tells the peer, and close
};
enum tls_progress tls_handshake(struct tls *tls);

// Plaintext into the iovecs, as much as there is. Returns the bytes, > 0; 0 at the end, which the
// peer has announced or not; -EAGAIN: more ciphertext is needed; -EPROTO: tls_reason() says why.
ssize_t tls_read(struct tls *tls, const struct iovec *iov, int count);

// Takes plaintext from the front of the iovecs, as much as there is room for. Returns the bytes,
// which may be 0, or -EPROTO.
ssize_t tls_write(struct tls *tls, const struct iovec *iov, int count);

// Ciphertext to be sent; returns its bytes, 0: none.
size_t tls_output(struct tls *tls, struct iovec *iov);
void tls_sent(struct tls *tls, size_t bytes);

// Tells the peer, once, that no more plaintext will come.
void tls_bye(struct tls *tls);

// Who the peer has proven to be: the distinguished name of its verified certificate (RFC 4514), or
// the name of its pre-shared key. NULL: it was not asked to, or the handshake is not done.
const char *tls_identity(const struct tls *tls);
// "TLS1.3, AES-256-GCM"; for the log. After the handshake.
void tls_describe(const struct tls *tls, char *text, size_t size);
// Why it failed, one line; "" before.
const char *tls_reason(const struct tls *tls);

#endif
