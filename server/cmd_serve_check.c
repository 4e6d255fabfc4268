// SPDX-License-Identifier: Apache-2.0
#include "server/cmd.h"
#include "server/serve_listen.h"
#include "server/serve_options.h"

bool serve_options_check_tls(const struct serve_options *options)
{
    const struct tls_options *tls = &options->tls;
    bool given = tls->certificates != NULL || tls->psk != NULL;

    if (options->tls_given && options->tls_mode == SERVE_TLS_OFF) {
        // Other options of TLS may stand unused in a script or a unit, but access rules without TLS
        // would protect nothing.
        if (options->tls_allow_count > 0) {
            cmd_fail("serve: --tls-allow needs TLS; remove it or --tls=off");
            return false;
        }
        return true;
    }
    if (tls->certificates != NULL && tls->psk != NULL) {
        cmd_fail("serve: --tls-certificates and --tls-psk do not go together; choose one");
    } else if (!given && (options->tls_given || tls->verify_peer || tls->priority != NULL ||
                          options->tls_allow_count > 0)) {
        cmd_fail("serve: TLS needs --tls-certificates or --tls-psk");
    } else if (options->tls_allow_count > 0 && tls->psk == NULL && !tls->verify_peer) {
        cmd_fail("serve: --tls-allow needs --tls-verify-peer, or any name could be claimed");
    } else {
        return true;
    }
    return false;
}

bool serve_options_check(const struct serve_options *options)
{
    const struct serve_listen *listen = &options->listen;

    if (options->image_count == 0) {
        cmd_fail("serve: no image; say which, or see 'lazycow serve --help'");
    } else if (options->image_count > EXPORTS_MAX) {
        cmd_fail("serve: %zu images are too many, at most %d", options->image_count, EXPORTS_MAX);
    } else if (listen->stdio && serve_listen_given(listen)) {
        cmd_fail("serve: --stdio listens nowhere; remove --socket, --bind, --port and --vsock");
    } else if (listen->socket_count == 0 &&
               (listen->socket_mode != NULL || listen->socket_group != NULL)) {
        cmd_fail("serve: --socket-mode and --socket-group are for --socket");
    } else if (options->exports.default_name != NULL && options->image_count > 1) {
        cmd_fail("serve: --export-name is for a single image; write NAME=IMAGE for each");
    } else {
        return true;
    }
    return false;
}
