// SPDX-License-Identifier: Apache-2.0
// keepalive.h: how a TCP connection finds out that its peer has vanished (--tcp-keepalive).
#ifndef LAZYCOW_SERVER_KEEPALIVE_H
#define LAZYCOW_SERVER_KEEPALIVE_H

#include <stdbool.h>

// The kernel takes no longer time for TCP_KEEPIDLE, in seconds.
#define KEEPALIVE_SECONDS_MAX 32767u

struct keepalive {
    bool off;         // a silent peer is waited for without an end
    unsigned seconds; // of silence before the peer is asked; 0: the system's times
};

// Sets it for a TCP socket. With seconds, a peer that answers nothing for twice that time is given
// up, also where it owes the acknowledgment of something that was sent.
void keepalive_set(int fd, const struct keepalive *keepalive);

#endif
