// SPDX-License-Identifier: Apache-2.0
// stdio_client.h: the client at standard input and output (--stdio): of inetd, or of a program that
// starts a server for itself.
#ifndef LAZYCOW_SERVER_STDIO_CLIENT_H
#define LAZYCOW_SERVER_STDIO_CLIENT_H

#include <pthread.h>
#include <stdbool.h>

#include "qcow2/base/error.h"

struct stdio_client {
    int fd; // a non-blocking socket, for the connection; the server closes it
    // Where input and output are not one socket, two threads pass on what comes and goes.
    bool relayed;
    int relay; // their end of the socket
    int input;
    int output;
    pthread_t out_thread;
};

// Takes the client from descriptors 0 and 1, which lead to /dev/null from then on, and so does 2
// if it led to the client, too. To be called before anything is printed, with signals blocked.
// Returns 0, or a negative errno with a message.
int stdio_client_take(struct stdio_client *client, struct error *err);

// With fd closed: waits until the client has got everything, for as long as a client of a socket
// that takes no replies is waited for.
void stdio_client_finish(struct stdio_client *client);

#endif
