// SPDX-License-Identifier: Apache-2.0
// guest_nbd.c: gives /dev/nbdINDEX connections over netlink, and new ones for those that are dead:
// the kernel offers that for a device that outlives its server, and nbd-client does not use it.
// Usage: guest_nbd connect|reconnect INDEX HOST PORT EXPORT CONNECTIONS
//        guest_nbd wait HOST PORT      until all connections to the address are dead: those alone
//        are
//                                      replaced by reconnect, which tells nothing of the others
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// Seconds that requests wait for new connections.
#define DEAD_CONNECTION_SECONDS 600
// Seconds that a request waits for its reply. One that a stopping server leaves unanswered waits so
// long before the kernel sends it over a new connection, at each restart anew.
#define TIMEOUT_SECONDS 60

struct message {
    struct nlmsghdr header;
    struct genlmsghdr generic;
    char attributes[4096];
};

static void must(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "guest_nbd: %s: %s\n", what, strerror(errno));
    exit(1);
}

// ---- Netlink ------------------------------------------------------------------------------------

static void message_begin(struct message *m, uint16_t family, uint8_t command)
{
    memset(m, 0, sizeof(*m));
    m->header.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
    m->header.nlmsg_type = family;
    m->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    m->generic.cmd = command;
    m->generic.version = 1;
}

static struct nlattr *attribute(struct message *m, uint16_t type, const void *data, size_t length)
{
    struct nlattr *at = (struct nlattr *)((char *)m + NLMSG_ALIGN(m->header.nlmsg_len));

    at->nla_type = type;
    at->nla_len = (uint16_t)(NLA_HDRLEN + length);
    if (length > 0)
        memcpy((char *)at + NLA_HDRLEN, data, length);
    m->header.nlmsg_len = NLMSG_ALIGN(m->header.nlmsg_len) + NLA_ALIGN(at->nla_len);
    return at;
}

static void attribute_u64(struct message *m, uint16_t type, uint64_t value)
{
    attribute(m, type, &value, sizeof(value));
}

static void nest_end(struct message *m, struct nlattr *nest)
{
    nest->nla_len = (uint16_t)((char *)m + m->header.nlmsg_len - (char *)nest);
    nest->nla_type |= NLA_F_NESTED;
}

// Sends the message and takes the first reply: the answer, or the acknowledgment.
static void call(int netlink, struct message *m, struct message *answer)
{
    must(send(netlink, m, m->header.nlmsg_len, 0) >= 0, "send");
    must(recv(netlink, answer, sizeof(*answer), 0) > 0, "recv");
    if (answer->header.nlmsg_type == NLMSG_ERROR) {
        const struct nlmsgerr *error = NLMSG_DATA(&answer->header);
        errno = -error->error;
        must(error->error == 0, "the kernel refuses");
    }
}

static uint16_t find_family(int netlink)
{
    struct message m, answer;

    message_begin(&m, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    attribute(&m, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME, sizeof(NBD_GENL_FAMILY_NAME));
    call(netlink, &m, &answer);
    struct nlattr *at = (struct nlattr *)answer.attributes;
    while (at->nla_type != CTRL_ATTR_FAMILY_ID) {
        must(at->nla_len > 0, "no family");
        at = (struct nlattr *)((char *)at + NLA_ALIGN(at->nla_len));
    }
    must(recv(netlink, &m, sizeof(m), 0) > 0, "recv"); // the acknowledgment
    return *(uint16_t *)((char *)at + NLA_HDRLEN);
}

// ---- NBD ----------------------------------------------------------------------------------------

struct export_reply {
    uint64_t size;
    uint16_t flags;
} __attribute__((packed));

static int connect_export(const char *host, const char *port, const char *name,
                          struct export_reply *reply)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    uint32_t length = (uint32_t)strlen(name);
    uint32_t words[3] = {htobe32(3), htobe32(1), htobe32(length)}; // flags, EXPORT_NAME
    char greeting[18];

    must(inet_pton(AF_INET, host, &address.sin_addr) == 1, "the address");
    must(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "connect");
    must(recv(fd, greeting, sizeof(greeting), MSG_WAITALL) == sizeof(greeting), "the greeting");
    must(write(fd, &words[0], 4) == 4 && write(fd, "IHAVEOPT", 8) == 8 &&
             write(fd, &words[1], 8) == 8 && write(fd, name, length) == (ssize_t)length,
         "write");
    must(recv(fd, reply, sizeof(*reply), MSG_WAITALL) == sizeof(*reply), "the export");
    return fd;
}

// True while the kernel has a connection to the address that it has not shut down: one that stands,
// or whose end has come and was not read.
static int connection_lives(const char *host, const char *port)
{
    enum { ESTABLISHED = 1, CLOSE_WAIT = 8 };
    struct in_addr address;
    FILE *table = fopen("/proc/net/tcp", "r");
    char line[512];
    int lives = 0;

    must(table != NULL, "/proc/net/tcp");
    must(inet_pton(AF_INET, host, &address) == 1, "the address");
    while (fgets(line, sizeof(line), table)) {
        unsigned remote, remote_port, state;

        if (sscanf(line, "%*d: %*x:%*x %x:%x %x", &remote, &remote_port, &state) == 3 &&
            remote == address.s_addr && remote_port == (unsigned)atoi(port))
            lives |= state == ESTABLISHED || state == CLOSE_WAIT;
    }
    fclose(table);
    return lives;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "wait") == 0) {
        while (connection_lives(argv[2], argv[3]))
            usleep(10000);
        return 0;
    }
    if (argc != 7)
        return 2;
    int connecting = strcmp(argv[1], "connect") == 0;
    int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    must(netlink >= 0, "netlink");
    struct message m, answer;
    message_begin(&m, find_family(netlink), connecting ? NBD_CMD_CONNECT : NBD_CMD_RECONFIGURE);
    uint32_t index = (uint32_t)atoi(argv[2]);
    attribute(&m, NBD_ATTR_INDEX, &index, sizeof(index));
    struct export_reply reply;
    uint32_t descriptors[16];
    unsigned count = (unsigned)atoi(argv[6]);
    must(count <= 16, "so many connections");
    for (unsigned i = 0; i < count; i++)
        descriptors[i] = (uint32_t)connect_export(argv[3], argv[4], argv[5], &reply);
    if (connecting) {
        attribute_u64(&m, NBD_ATTR_SIZE_BYTES, be64toh(reply.size));
        attribute_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 4096);
        attribute_u64(&m, NBD_ATTR_SERVER_FLAGS, be16toh(reply.flags));
        attribute_u64(&m, NBD_ATTR_TIMEOUT, TIMEOUT_SECONDS);
        attribute_u64(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, DEAD_CONNECTION_SECONDS);
    }
    struct nlattr *sockets = attribute(&m, NBD_ATTR_SOCKETS, NULL, 0);
    for (unsigned i = 0; i < count; i++) {
        struct nlattr *item = attribute(&m, NBD_SOCK_ITEM, NULL, 0);
        attribute(&m, NBD_SOCK_FD, &descriptors[i], sizeof(descriptors[i]));
        nest_end(&m, item);
    }
    nest_end(&m, sockets);
    call(netlink, &m, &answer);
    return 0;
}
