// SPDX-License-Identifier: Apache-2.0
// options.c: option haggling ("Option types"): the limits of each option's data, and its answer.
#include "protocol/options.h"

#include <endian.h>
#include <string.h>

#include "protocol/meta_context.h"

#define OBSTACLE_UNKNOWN "there is no export for it with the name"
#define OBSTACLE_REFUSED "refused, too many connections (max-connections) use the export"

// ---- Answers ------------------------------------------------------------------------------------

uint8_t *option_reply(struct session *s, uint32_t option, uint32_t type, size_t length)
{
    struct nbd_option_reply header = {
        .magic = htobe64(NBD_OPTION_REPLY_MAGIC),
        .option = htobe32(option),
        .type = htobe32(type),
        .length = htobe32((uint32_t)length),
    };
    uint8_t *out = output_carve(&s->output, sizeof(header) + length, 1);
    if (out == NULL)
        return NULL;
    memcpy(out, &header, sizeof(header));
    output_copied(&s->output, out, sizeof(header) + length);
    return out + sizeof(header);
}

void option_ack(struct session *s, uint32_t option)
{
    (void)option_reply(s, option, NBD_REP_ACK, 0);
}

void option_error(struct session *s, uint32_t option, uint32_t type, const char *message)
{
    size_t length = strlen(message);
    uint8_t *data = option_reply(s, option, type, length);
    if (data != NULL)
        memcpy(data, message, length);
}

// Remembers why the client is refused an export.
static void set_obstacle(struct session *s, const char *obstacle, const uint8_t *name,
                         size_t length)
{
    if (length > SESSION_OBSTACLE_NAME_MAX)
        length = SESSION_OBSTACLE_NAME_MAX;
    s->obstacle = obstacle;
    if (length > 0)
        memcpy(s->obstacle_name, name, length);
    s->obstacle_name[length] = '\0';
}

bool option_string(struct cursor *c, const uint8_t **string, uint32_t *length)
{
    return cursor_u32(c, length) && *length <= SESSION_STRING_MAX &&
           cursor_bytes(c, *length, string);
}

// ---- Exports ------------------------------------------------------------------------------------

const struct session_export *option_find_export(const struct session *s, const uint8_t *name,
                                                size_t length)
{
    size_t count = s->host->export_count(s->host->context);
    for (size_t i = 0; i < count; i++) {
        const struct session_export *export = s->host->export_at(s->host->context, i);
        if (strlen(export->name) == length && memcmp(export->name, name, length) == 0)
            return export;
    }
    // The empty name stands for the first export, unless an export has the empty name, visible to
    // this client or not: a client that may not use that export does not expect another disk
    // instead.
    if (length == 0 && count > 0 && !s->host->empty_name_hidden)
        return s->host->export_at(s->host->context, 0);
    return NULL;
}

const char *option_why_unknown(const struct session *s, const uint8_t *name, size_t length)
{
    const char *why = NULL;

    if (s->host->why_unknown != NULL)
        why = s->host->why_unknown(s->host->context, name, length);
    return why != NULL ? why : "no export of this name";
}

// Returns why the client may not use the export; NULL when it may.
static const char *options_why_refused(const struct session *s, const struct session_export *export)
{
    return s->host->why_refused != NULL ? s->host->why_refused(s->host->context, export) : NULL;
}

static uint16_t options_transmission_flags(const struct session *s,
                                           const struct session_export *export)
{
    uint16_t flags = export->flags | NBD_FLAG_HAS_FLAGS;
    if (s->mode != REPLY_SIMPLE)
        flags |= NBD_FLAG_SEND_DF;
    if (s->mode == REPLY_EXTENDED && s->contexts != 0 && s->contexts_export == export)
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

static enum step begin_transmission(struct session *s, const struct session_export *export,
                                    enum session_event *event)
{
    // "NBD_OPT_SET_META_CONTEXT": contexts are valid only for the export that they were set for.
    if (s->contexts_export != export)
        s->contexts = 0;
    s->chosen = export;
    s->flags = options_transmission_flags(s, export);
    s->phase = PHASE_REQUEST;
    *event = SESSION_NEGOTIATED;
    return STEP_EVENT;
}

// ---- The options --------------------------------------------------------------------------------

static enum step take_export_name(struct session *s, uint32_t option, struct cursor data,
                                  enum session_event *event)
{
    (void)option;
    if (s->mode == REPLY_EXTENDED)
        return session_end(s, SESSION_CLOSE, "EXPORT_NAME does not go with extended headers");
    const struct session_export *export = option_find_export(s, data.at, data.left);
    if (export == NULL) {
        set_obstacle(s, OBSTACLE_UNKNOWN, data.at, data.left);
        return session_end(s, SESSION_CLOSE, "EXPORT_NAME asked for an unknown export");
    }
    if (options_why_refused(s, export) != NULL) {
        set_obstacle(s, OBSTACLE_REFUSED, data.at, data.left);
        return session_end(s, SESSION_CLOSE, "EXPORT_NAME asked for an export that is refused");
    }
    struct nbd_export_name_reply reply = {
        .size = htobe64(export->size),
        .flags = htobe16(options_transmission_flags(s, export)),
    };
    size_t size = sizeof(reply) + (s->no_zeroes ? 0 : NBD_EXPORT_NAME_PADDING);
    uint8_t *out = output_carve(&s->output, size, 1);
    if (out == NULL)
        return STEP_AGAIN;
    memset(out, 0, size);
    memcpy(out, &reply, sizeof(reply));
    output_copied(&s->output, out, size);
    return begin_transmission(s, export, event);
}

static enum step take_abort(struct session *s, uint32_t option, struct cursor data,
                            enum session_event *event)
{
    (void)data;
    (void)event;
    option_ack(s, option);
    return session_end(s, SESSION_CLOSE, "the client ended the negotiation");
}

static enum step take_list(struct session *s, uint32_t option, struct cursor data,
                           enum session_event *event)
{
    (void)data;
    (void)event;
    size_t count = s->host->export_count(s->host->context);
    for (size_t i = 0; i < count; i++) {
        const struct session_export *export = s->host->export_at(s->host->context, i);
        const char *description = export->description != NULL ? export->description : "";
        size_t name_length = strlen(export->name);
        size_t description_length = strlen(description);
        uint32_t wire_length = htobe32((uint32_t)name_length);
        uint8_t *out = option_reply(s, option, NBD_REP_SERVER,
                                    sizeof(wire_length) + name_length + description_length);
        if (out == NULL)
            return STEP_AGAIN;
        memcpy(out, &wire_length, sizeof(wire_length));
        memcpy(out + sizeof(wire_length), export->name, name_length);
        memcpy(out + sizeof(wire_length) + name_length, description, description_length);
    }
    option_ack(s, option);
    return STEP_AGAIN;
}

static void info_string(struct session *s, uint32_t option, uint16_t type, const char *string)
{
    size_t length = strlen(string);
    uint16_t wire_type = htobe16(type);
    uint8_t *out = option_reply(s, option, NBD_REP_INFO, sizeof(wire_type) + length);
    if (out == NULL)
        return;
    memcpy(out, &wire_type, sizeof(wire_type));
    memcpy(out + sizeof(wire_type), string, length);
}

static void info_export(struct session *s, uint32_t option, const struct session_export *export)
{
    struct nbd_info_export info = {
        .type = htobe16(NBD_INFO_EXPORT),
        .size = htobe64(export->size),
        .flags = htobe16(options_transmission_flags(s, export)),
    };
    uint8_t *out = option_reply(s, option, NBD_REP_INFO, sizeof(info));
    if (out != NULL)
        memcpy(out, &info, sizeof(info));
}

static void info_block_size(struct session *s, uint32_t option, const struct session_export *export)
{
    struct nbd_info_block_size info = {
        .type = htobe16(NBD_INFO_BLOCK_SIZE),
        .minimum = htobe32(export->block_min),
        .preferred = htobe32(export->block_preferred),
        .maximum = htobe32(export->block_max),
    };
    uint8_t *out = option_reply(s, option, NBD_REP_INFO, sizeof(info));
    if (out != NULL)
        memcpy(out, &info, sizeof(info));
}

// The data of NBD_OPT_INFO and NBD_OPT_GO: an export's name, and a list of information types.
struct info_request {
    const uint8_t *name;
    uint32_t name_length;
    bool wants_name;
    bool wants_description;
};

static bool read_info_request(struct cursor data, struct info_request *request)
{
    *request = (struct info_request){0};
    uint16_t count;
    if (!option_string(&data, &request->name, &request->name_length) ||
        !cursor_u16(&data, &count) || data.left != count * sizeof(uint16_t))
        return false;
    uint16_t type;
    while (cursor_u16(&data, &type)) {
        request->wants_name |= type == NBD_INFO_NAME;
        request->wants_description |= type == NBD_INFO_DESCRIPTION;
    }
    return true;
}

static enum step take_info_or_go(struct session *s, uint32_t option, struct cursor data,
                                 enum session_event *event)
{
    struct info_request request;
    if (!read_info_request(data, &request)) {
        option_error(s, option, NBD_REP_ERR_INVALID, "lengths do not match the option's");
        return STEP_AGAIN;
    }
    const struct session_export *export = option_find_export(s, request.name, request.name_length);
    if (export == NULL) {
        if (option == NBD_OPT_GO)
            set_obstacle(s, OBSTACLE_UNKNOWN, request.name, request.name_length);
        option_error(s, option, NBD_REP_ERR_UNKNOWN,
                     option_why_unknown(s, request.name, request.name_length));
        return STEP_AGAIN;
    }
    // Every client may ask for information.
    const char *refusal = option == NBD_OPT_GO ? options_why_refused(s, export) : NULL;
    if (refusal != NULL) {
        set_obstacle(s, OBSTACLE_REFUSED, request.name, request.name_length);
        option_error(s, option, NBD_REP_ERR_POLICY, refusal);
        return STEP_AGAIN;
    }
    info_export(s, option, export);
    // Sent unasked: a client that knows the sizes works better, and none is refused without them.
    info_block_size(s, option, export);
    if (request.wants_name)
        info_string(s, option, NBD_INFO_NAME, export->name);
    if (request.wants_description && export->description != NULL)
        info_string(s, option, NBD_INFO_DESCRIPTION, export->description);
    option_ack(s, option);
    return option == NBD_OPT_GO ? begin_transmission(s, export, event) : STEP_AGAIN;
}

static enum step take_structured_reply(struct session *s, uint32_t option, struct cursor data,
                                       enum session_event *event)
{
    (void)data;
    (void)event;
    if (s->mode == REPLY_EXTENDED) {
        option_error(s, option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers were negotiated");
        return STEP_AGAIN;
    }
    if (s->mode == REPLY_STRUCTURED) {
        option_error(s, option, NBD_REP_ERR_INVALID, "structured replies were negotiated before");
        return STEP_AGAIN;
    }
    s->mode = REPLY_STRUCTURED;
    option_ack(s, option);
    return STEP_AGAIN;
}

static enum step take_extended_headers(struct session *s, uint32_t option, struct cursor data,
                                       enum session_event *event)
{
    (void)data;
    (void)event;
    if (s->mode == REPLY_EXTENDED) {
        option_error(s, option, NBD_REP_ERR_INVALID, "extended headers were negotiated before");
        return STEP_AGAIN;
    }
    s->mode = REPLY_EXTENDED;
    option_ack(s, option);
    return STEP_AGAIN;
}

static enum step take_starttls(struct session *s, uint32_t option, struct cursor data,
                               enum session_event *event)
{
    (void)data;
    if (s->host->tls == SESSION_TLS_OFF) {
        option_error(s, option, NBD_REP_ERR_POLICY, "this server has no TLS");
        return STEP_AGAIN;
    }
    if (s->tls) {
        option_error(s, option, NBD_REP_ERR_INVALID, "TLS was started before");
        return STEP_AGAIN;
    }
    // Anybody between client and server could have sent these bytes (CVE-2021-3716).
    if (input_length(&s->input) > 0)
        return session_end(s, SESSION_BAD, "bytes behind STARTTLS, before TLS began");
    option_ack(s, option);
    s->phase = PHASE_TLS;
    *event = SESSION_STARTTLS;
    return STEP_EVENT;
}

static enum step take_meta_context(struct session *s, uint32_t option, struct cursor data,
                                   enum session_event *event)
{
    (void)event;
    meta_context_take(s, option, data);
    return STEP_AGAIN;
}

// ---- Dispatch -----------------------------------------------------------------------------------

static const struct option_type {
    uint32_t option;
    enum step (*take)(struct session *s, uint32_t option, struct cursor data,
                      enum session_event *event);
    // Fewest bytes of data. The handler is not called outside of min and max.
    uint32_t min;
    uint32_t max;
} option_types[] = {
    {NBD_OPT_EXPORT_NAME, take_export_name, 0, SESSION_STRING_MAX},
    {NBD_OPT_ABORT, take_abort, 0, UINT32_MAX},
    {NBD_OPT_LIST, take_list, 0, 0},
    {NBD_OPT_STARTTLS, take_starttls, 0, 0},
    {NBD_OPT_INFO, take_info_or_go, 6, OPTION_DATA_MAX},
    {NBD_OPT_GO, take_info_or_go, 6, OPTION_DATA_MAX},
    {NBD_OPT_STRUCTURED_REPLY, take_structured_reply, 0, 0},
    {NBD_OPT_LIST_META_CONTEXT, take_meta_context, 8, OPTION_DATA_MAX},
    {NBD_OPT_SET_META_CONTEXT, take_meta_context, 8, OPTION_DATA_MAX},
    {NBD_OPT_EXTENDED_HEADERS, take_extended_headers, 0, 0},
};

static const struct option_type *find_option(uint32_t option)
{
    for (size_t i = 0; i < sizeof(option_types) / sizeof(option_types[0]); i++)
        if (option_types[i].option == option)
            return &option_types[i];
    return NULL;
}

// Refuses an option in the way that it provides: EXPORT_NAME has no error reply.
static enum step options_refuse(struct session *s, uint32_t option, uint32_t type,
                                const char *message)
{
    if (option == NBD_OPT_EXPORT_NAME)
        return session_end(s, SESSION_CLOSE, message);
    if (option == NBD_OPT_SET_META_CONTEXT)
        meta_context_forget(s);
    option_error(s, option, type, message);
    return STEP_AGAIN;
}

// Calls the handler of an option. length: bytes of the option's data on the wire. data has all of
// them, or none if they were thrown away.
static enum step dispatch(struct session *s, uint32_t option, uint32_t length, struct cursor data,
                          enum session_event *event)
{
    const struct option_type *type = find_option(option);
    if (s->host->tls == SESSION_TLS_REQUIRED && !s->tls && option != NBD_OPT_STARTTLS &&
        option != NBD_OPT_ABORT) {
        set_obstacle(s, "it has to begin TLS first", data.at, 0);
        return options_refuse(s, option, NBD_REP_ERR_TLS_REQD, "TLS comes first");
    }
    if (s->host->shutting_down && option != NBD_OPT_ABORT)
        return options_refuse(s, option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    if (type == NULL)
        return options_refuse(s, option, NBD_REP_ERR_UNSUP, "unknown option");
    if (length > type->max && type->max > 0)
        return options_refuse(s, option, NBD_REP_ERR_TOO_BIG, "the option has too much data");
    if (length > type->max)
        return options_refuse(s, option, NBD_REP_ERR_INVALID, "this option has no data");
    if (length < type->min)
        return options_refuse(s, option, NBD_REP_ERR_INVALID, "the option has too little data");
    return type->take(s, option, data, event);
}

enum step option_take(struct session *s, enum session_event *event)
{
    struct nbd_option header;
    if (input_length(&s->input) < sizeof(header))
        return STEP_MORE;
    memcpy(&header, input_data(&s->input), sizeof(header));
    uint32_t option = be32toh(header.option);
    uint32_t length = be32toh(header.length);
    if (be64toh(header.magic) != NBD_IHAVEOPT)
        return session_end(s, SESSION_BAD, "an option without its magic");
    // "Fixed newstyle": this client does not understand the answers to other options.
    if (!s->fixed_newstyle && option != NBD_OPT_EXPORT_NAME)
        return session_end(s, SESSION_BAD, "an option that needs fixed newstyle");
    if (option == NBD_OPT_EXPORT_NAME && length > SESSION_STRING_MAX)
        return session_end(s, SESSION_CLOSE, "EXPORT_NAME with a name that is too long");
    if (length > OPTION_DATA_MAX) {
        input_consume(&s->input, sizeof(header));
        s->option = option;
        s->option_length = length;
        s->skip = length;
        s->phase = PHASE_OPTION_SKIP;
        return STEP_AGAIN;
    }
    if (input_length(&s->input) - sizeof(header) < length)
        return STEP_MORE;
    struct cursor data = {.at = input_data(&s->input) + sizeof(header), .left = length};
    input_consume(&s->input, sizeof(header) + length);
    return dispatch(s, option, length, data, event);
}

enum step option_skipped(struct session *s)
{
    // An option whose data is thrown away never causes an event.
    enum session_event event;
    s->phase = PHASE_OPTION;
    return dispatch(s, s->option, s->option_length, (struct cursor){0}, &event);
}
