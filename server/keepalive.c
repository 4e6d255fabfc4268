// SPDX-License-Identifier: Apache-2.0
#include "server/keepalive.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

// Probes that a silent peer may leave unanswered before it is given up.
#define KEEPALIVE_PROBES 4

static void set_option(int fd, int level, int option, int value)
{
    // A kernel without the option keeps its own times.
    (void)setsockopt(fd, level, option, &value, sizeof(value));
}

void keepalive_set(int fd, const struct keepalive *keepalive)
{
    int seconds = (int)keepalive->seconds;
    int interval = seconds / KEEPALIVE_PROBES;

    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, !keepalive->off);
    if (keepalive->off || seconds == 0) {
        return;
    }
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval > 0 ? interval : 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
    // No probes are sent while data waits for its acknowledgment; TCP alone would wait up to 15
    // minutes.
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 2 * seconds * 1000);
}
