// SPDX-License-Identifier: Apache-2.0
// keepalive.h: lets a TCP connection find out that its peer has vanished (--tcp-keepalive).
#ifndef LAZYCOW_SERVER_KEEPALIVE_H
#define LAZYCOW_SERVER_KEEPALIVE_H

#include <stdbool.h>

// Largest TCP_KEEPIDLE that the kernel takes, in seconds.
#define KEEPALIVE_SECONDS_MAX 32767u

struct keepalive {
    // A silent peer is waited for without end.
    bool off;
    // Seconds of silence before the peer is probed; 0: the system's times.
    unsigned seconds;
};

// Sets keepalive for a TCP socket. With seconds, a peer that answers nothing for twice that time is
// given up, also if it owes an acknowledgment.
void keepalive_set(int fd, const struct keepalive *keepalive);

#endif
