// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/load_connection.h"

#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

// Seconds after which a silent server counts as dead.
#define ANSWER_SECONDS 30
// Bytes of the largest option reply that is received whole.
#define OPTION_DATA_MAX 1024u

static bool fail(const char *what)
{
    fprintf(stderr, "nbdload: %s\n", what);
    return false;
}

// ---- Handshake ----------------------------------------------------------------------------------

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int connect_tcp(const char *host, const char *port)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    const int on = 1;
    struct addrinfo *list;
    int fd = -1;

    if (getaddrinfo(host, port, &hints, &list) != 0)
        return -1;
    for (const struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd >= 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

static bool get(int fd, void *data, size_t length)
{
    return recv(fd, data, length, MSG_WAITALL) == (ssize_t)length;
}

static bool put(int fd, const void *data, size_t length)
{
    return send(fd, data, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static bool greet(int fd)
{
    const uint32_t flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
    const uint32_t wire = htobe32(flags);
    struct nbd_greeting greeting;

    if (!get(fd, &greeting, sizeof(greeting)) || be64toh(greeting.magic) != NBD_MAGIC ||
        be64toh(greeting.option_magic) != NBD_IHAVEOPT ||
        (be16toh(greeting.flags) & flags) != flags)
        return fail("the server does not speak fixed newstyle without zeroes");
    return put(fd, &wire, sizeof(wire));
}

static bool send_option(int fd, uint32_t option, const void *data, size_t length)
{
    const struct nbd_option header = {
        .magic = htobe64(NBD_IHAVEOPT),
        .option = htobe32(option),
        .length = htobe32((uint32_t)length),
    };

    return put(fd, &header, sizeof(header)) && (length == 0 || put(fd, data, length));
}

// Takes replies until the last one. The export's size is among the replies to GO.
static bool option_replies(int fd, uint64_t *size, uint32_t *type)
{
    struct nbd_option_reply reply;
    struct nbd_info_export info;
    uint8_t data[OPTION_DATA_MAX];

    do {
        uint32_t length;

        if (!get(fd, &reply, sizeof(reply)) || be64toh(reply.magic) != NBD_OPTION_REPLY_MAGIC)
            return fail("bad option reply");
        length = be32toh(reply.length);
        *type = be32toh(reply.type);
        if (length > sizeof(data) || (length > 0 && !get(fd, data, length)))
            return fail("option reply too long or cut short");
        if (*type == NBD_REP_INFO && length == sizeof(info)) {
            memcpy(&info, data, sizeof(info));
            if (be16toh(info.type) == NBD_INFO_EXPORT)
                *size = be64toh(info.size);
        }
    } while (*type == NBD_REP_INFO);
    return true;
}

static bool go(struct load_connection *c)
{
    uint8_t data[OPTION_DATA_MAX];
    const size_t name_length = strlen(c->target->name);
    const uint32_t wire_length = htobe32((uint32_t)name_length);
    uint32_t type;

    if (name_length > sizeof(data) - 6)
        return fail("the export's name is too long");
    memcpy(data, &wire_length, 4);
    memcpy(data + 4, c->target->name, name_length);
    memset(data + 4 + name_length, 0, 2); // no information requests
    if (!send_option(c->fd, NBD_OPT_GO, data, name_length + 6) ||
        !option_replies(c->fd, &c->size, &type))
        return false;
    return type == NBD_REP_ACK || fail("the server refuses the export");
}

static bool negotiate(struct load_connection *c)
{
    uint64_t size;
    uint32_t type;

    if (!greet(c->fd))
        return false;
    if (c->target->structured) {
        if (!send_option(c->fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0) ||
            !option_replies(c->fd, &size, &type))
            return false;
        if (type != NBD_REP_ACK)
            return fail("the server has no structured replies");
    }
    return go(c);
}

bool load_connection_open(struct load_connection *c, const struct load_target *target,
                          unsigned depth)
{
    const struct timeval patience = {.tv_sec = ANSWER_SECONDS};

    memset(c, 0, sizeof(*c));
    c->target = target;
    c->head_wanted = sizeof(struct nbd_simple_reply);
    for (unsigned i = 0; i < depth; i++)
        c->unused[c->unused_count++] = (uint16_t)i;
    c->fd = target->socket != NULL ? connect_unix(target->socket)
                                   : connect_tcp(target->host, target->port);
    if (c->fd < 0)
        return fail("cannot connect");
    (void)setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    if (!negotiate(c)) {
        close(c->fd);
        return false;
    }
    return true;
}

void load_connection_close(struct load_connection *c)
{
    const struct nbd_request bye = {.magic = htobe32(NBD_REQUEST_MAGIC),
                                    .type = htobe16(NBD_CMD_DISC)};

    (void)put(c->fd, &bye, sizeof(bye));
    close(c->fd);
}

// ---- Sending ------------------------------------------------------------------------------------

void load_connection_add(struct load_connection *c, enum load_kind kind, uint64_t offset,
                         uint32_t length, uint64_t now)
{
    uint16_t index = c->unused[--c->unused_count];
    struct load_slot *slot = &c->slots[index];

    slot->kind = kind;
    slot->begun = now;
    slot->header = (struct nbd_request){
        .magic = htobe32(NBD_REQUEST_MAGIC),
        .flags = htobe16(load_kinds[kind].flags),
        .type = htobe16(load_kinds[kind].command),
        .cookie = index,
        .offset = htobe64(offset),
        .length = htobe32(kind == LOAD_FLUSH ? 0 : length),
    };
    c->queue[(c->queue_first + c->queue_count++) % LOAD_DEPTH_MAX] = index;
    c->in_flight++;
}

static uint32_t payload_length(const struct load_slot *slot)
{
    return load_kinds[slot->kind].command == NBD_CMD_WRITE ? be32toh(slot->header.length) : 0;
}

// Lists the queued bytes that are not sent yet as iovecs. Returns how many.
static int list_queue(struct load_connection *c, void *payload, struct iovec *iov)
{
    uint32_t gone = c->queue_sent;
    int count = 0;

    for (unsigned i = 0; i < c->queue_count; i++) {
        struct load_slot *slot = &c->slots[c->queue[(c->queue_first + i) % LOAD_DEPTH_MAX]];
        uint32_t data = payload_length(slot);
        uint32_t header = sizeof(slot->header);

        if (gone < header)
            iov[count++] = (struct iovec){(uint8_t *)&slot->header + gone, header - gone};
        gone = gone < header ? 0 : gone - header;
        if (data > 0)
            iov[count++] = (struct iovec){(uint8_t *)payload + gone, data - gone};
        gone = 0;
    }
    return count;
}

static void drop_sent(struct load_connection *c, size_t bytes)
{
    bytes += c->queue_sent;
    while (c->queue_count > 0) {
        struct load_slot *slot = &c->slots[c->queue[c->queue_first]];
        size_t length = sizeof(slot->header) + payload_length(slot);

        if (bytes < length)
            break;
        bytes -= length;
        c->queue_first = (c->queue_first + 1) % LOAD_DEPTH_MAX;
        c->queue_count--;
    }
    c->queue_sent = (uint32_t)bytes;
}

bool load_connection_send(struct load_connection *c, void *payload, struct load_result *result)
{
    struct iovec iov[2 * LOAD_DEPTH_MAX];
    struct msghdr message = {.msg_iov = iov};
    ssize_t n;

    message.msg_iovlen = (size_t)list_queue(c, payload, iov);
    if (message.msg_iovlen == 0)
        return true;
    result->sends++;
    n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR || fail(strerror(errno));
    drop_sent(c, (size_t)n);
    return true;
}

// ---- Receiving ----------------------------------------------------------------------------------

static void finish(struct load_connection *c, struct load_slot *slot, uint64_t now,
                   struct load_result *result)
{
    histogram_add(&result->latency[slot->kind], now - slot->begun);
    result->bytes += slot->kind == LOAD_FLUSH ? 0 : be32toh(slot->header.length);
    c->unused[c->unused_count++] = (uint16_t)(slot - c->slots);
    c->in_flight--;
}

static void expect_head(struct load_connection *c)
{
    c->head_filled = 0;
    c->head_wanted = sizeof(struct nbd_simple_reply);
}

// Takes a complete header. Returns false when it is none.
static bool take_head(struct load_connection *c, uint64_t now, struct load_result *result)
{
    struct nbd_structured_reply chunk;
    struct nbd_simple_reply simple;
    struct load_slot *slot;

    memcpy(&simple, c->head, sizeof(simple));
    if (be32toh(simple.magic) == NBD_STRUCTURED_REPLY_MAGIC && c->head_wanted < sizeof(chunk)) {
        c->head_wanted = sizeof(chunk);
        return true;
    }
    memcpy(&chunk, c->head, sizeof(chunk));
    // Both kinds of replies have the cookie in one place.
    if (simple.cookie >= LOAD_DEPTH_MAX)
        return fail("reply to a request that was not made");
    slot = &c->slots[simple.cookie];
    c->reading = slot;
    expect_head(c);
    if (be32toh(simple.magic) == NBD_SIMPLE_REPLY_MAGIC) {
        result->errors += simple.error != 0;
        c->skip = slot->kind == LOAD_READ && simple.error == 0 ? be32toh(slot->header.length) : 0;
    } else if (be32toh(chunk.magic) == NBD_STRUCTURED_REPLY_MAGIC) {
        result->errors += (be16toh(chunk.type) & 0x8000) != 0;
        c->skip = be32toh(chunk.length);
        if ((be16toh(chunk.flags) & NBD_REPLY_FLAG_DONE) == 0)
            c->reading = NULL;
    } else {
        return fail("bad reply");
    }
    if (c->skip == 0 && c->reading != NULL)
        finish(c, c->reading, now, result);
    return true;
}

static bool take_bytes(struct load_connection *c, const uint8_t *data, size_t length, uint64_t now,
                       struct load_result *result)
{
    while (length > 0) {
        size_t n;

        if (c->skip > 0) {
            n = length < c->skip ? length : (size_t)c->skip;
            c->skip -= n;
            if (c->skip == 0 && c->reading != NULL)
                finish(c, c->reading, now, result);
        } else {
            n = c->head_wanted - c->head_filled;
            n = length < n ? length : n;
            memcpy(c->head + c->head_filled, data, n);
            c->head_filled += (unsigned)n;
            if (c->head_filled == c->head_wanted && !take_head(c, now, result))
                return false;
        }
        data += n;
        length -= n;
    }
    return true;
}

bool load_connection_receive(struct load_connection *c, void *buffer, uint32_t bytes, bool wait,
                             struct load_result *result)
{
    ssize_t n = recv(c->fd, buffer, bytes, wait ? 0 : MSG_DONTWAIT);

    result->receives++;
    if (n == 0)
        return fail("the server has closed the connection");
    if (n < 0) {
        if (errno == EINTR || (errno == EAGAIN && !wait))
            return true;
        return fail(errno == EAGAIN ? "the server does not answer" : strerror(errno));
    }
    return take_bytes(c, buffer, (size_t)n, clock_now(), result);
}
