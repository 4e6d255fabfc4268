// SPDX-License-Identifier: Apache-2.0
#include "server/connection_output.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "server/connection_end.h"
#include "server/connection_tls.h"
#include "server/loop.h"
#include "server/quick_call.h"

// Iovecs of one sendmsg: the replies to 64 reads, each a header and its data, and as many again for
// reports of holes. The kernel takes at most 1024.
#define CONNECTION_IOV_MAX 256

bool connection_output_pending(struct connection *connection)
{
    struct iovec iov;

    return client_output_bytes(connection->client) > 0 ||
           (connection->tls != NULL && !connection_in_step(connection) &&
            tls_output(connection->tls, &iov) > 0);
}

// Fills iov with output, at most CONNECTION_IOV_MAX iovecs. Returns how many, or -1 when the
// connection is lost.
static int output_gather(struct connection *connection, struct iovec *iov)
{
    int count;

    if (connection_in_step(connection)) {
        return 0;
    }
    if (connection->tls != NULL) {
        if (connection_secure(connection) && !connection_tls_write(connection)) {
            return -1;
        }
        return tls_output(connection->tls, iov) > 0 ? 1 : 0;
    }
    count = client_output(connection->client, iov, CONNECTION_IOV_MAX);
    if (count == 0 && client_output_bytes(connection->client) > 0) {
        connection_close(connection, "no memory for its replies");
        return -1;
    }
    return count;
}

static void output_sent(struct connection *connection, size_t bytes)
{
    if (connection->tls != NULL) {
        tls_sent(connection->tls, bytes);
    } else {
        client_sent(connection->client, bytes);
    }
}

bool connection_settle(struct connection *connection)
{
    if (!client_settle(connection->client)) {
        // The header has promised success already, so only the end of the connection can report the
        // error.
        log_line(connection->set->log, LOG_LEVEL_WARNING,
                 "%s: the image can no longer be read where it was a moment ago", connection->name);
        connection_close(connection, "a reply could not be finished");
        return false;
    }
    return true;
}

bool connection_send(struct connection *connection)
{
    struct iovec iov[CONNECTION_IOV_MAX];

    for (int i = 0; i < CONNECTION_SEND_ROUNDS && !connection->blocked; i++) {
        struct msghdr message = {.msg_iov = iov};
        int count = output_gather(connection, iov);
        size_t total = 0;
        ssize_t n;

        if (count <= 0) {
            return count == 0;
        }
        message.msg_iovlen = (size_t)count;
        for (size_t k = 0; k < message.msg_iovlen; k++) {
            total += iov[k].iov_len;
        }
        do {
            n = quick_sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
        if (n < 0 && errno == EFAULT && !client_settled(connection->client)) {
            if (!connection_settle(connection)) {
                return false;
            }
            continue;
        }
        if (n < 0 && errno != EAGAIN) {
            connection_close(connection, strerror(errno));
            return false;
        }
        connection->progress = uv_now(connection->set->uv);
        if (n > 0) {
            connection->set->progress = true;
            connection->set->turn |= LOOP_SENT;
            output_sent(connection, (size_t)n);
        }
        // A socket that took fewer bytes than it was given is full.
        connection->blocked = n < 0 || (size_t)n < total;
    }
    return true;
}
