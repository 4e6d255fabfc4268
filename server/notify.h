// SPDX-License-Identifier: Apache-2.0
// notify.h: tells the service manager how far we are, by the protocol of sd_notify(3): a datagram
// to the Unix socket named in NOTIFY_SOCKET.
#ifndef LAZYCOW_SERVER_NOTIFY_H
#define LAZYCOW_SERVER_NOTIFY_H

// Sends the state, such as "READY=1". Does nothing where no service manager asked; a failure is of
// no consequence to the server and is not reported.
void notify(const char *state);

#endif
