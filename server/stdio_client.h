// SPDX-License-Identifier: Apache-2.0
// stdio_client.h: the client at standard input and output (--stdio), of inetd or of a program that
// starts a server for itself.
#ifndef LAZYCOW_SERVER_STDIO_CLIENT_H
#define LAZYCOW_SERVER_STDIO_CLIENT_H

#include <pthread.h>
#include <stdbool.h>

#include "qcow2/base/error.h"

struct stdio_client {
    // A non-blocking socket for the connection, which closes it.
    int fd;
    // Input and output are not one socket, so two threads pass the bytes on.
    bool relayed;
    // The threads' end of the socket pair.
    int relay;
    int input;
    int output;
    pthread_t out_thread;
};

// Takes the client from descriptors 0 and 1, which lead to /dev/null from then on; so does 2 if it
// led to the client, too. Called before anything is printed, with signals blocked. Returns 0, or a
// negative errno with a message.
int stdio_client_take(struct stdio_client *client, struct error *err);

// Called with fd closed. Waits until the client has received everything, for as long as the server
// waits for a client at a socket that takes no replies.
void stdio_client_finish(struct stdio_client *client);

#endif
