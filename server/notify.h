// SPDX-License-Identifier: Apache-2.0
// notify.h: reports the server's progress to the service manager by the protocol of sd_notify(3): a
// datagram to the Unix socket named in NOTIFY_SOCKET.
#ifndef LAZYCOW_SERVER_NOTIFY_H
#define LAZYCOW_SERVER_NOTIFY_H

// Sends the state, such as "READY=1". Does nothing if no service manager asked for it. A failure
// has no consequence for the server and is not reported.
void notify(const char *state);

#endif
