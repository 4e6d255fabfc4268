// SPDX-License-Identifier: Apache-2.0
#include "qcow2/codec/inflate.h"

#include <errno.h>
#include <libdeflate.h>
#include <zstd.h>

#include "qcow2/format/format.h"

// Inflates a raw deflate stream (RFC 1951).
static int inflate_deflate(const unsigned char *packed, size_t packed_length, unsigned char *bytes,
                           size_t length)
{
    struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
    size_t read, written = 0;

    if (!decompressor)
        return -ENOMEM;

    enum libdeflate_result result = libdeflate_deflate_decompress_ex(
        decompressor, packed, packed_length, bytes, length, &read, &written);
    libdeflate_free_decompressor(decompressor);
    return result == LIBDEFLATE_SUCCESS && written == length ? 0 : -EIO;
}

// Decompresses one or more zstd frames. Each frame is decompressed in one call straight into its
// place, which needs no window; streaming would allocate the window that the frame header asks for.
static int inflate_zstd(const unsigned char *packed, size_t packed_length, unsigned char *bytes,
                        size_t length)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    size_t written = 0;
    int result = context ? 0 : -ENOMEM;

    while (result == 0 && written < length) {
        size_t frame = ZSTD_findFrameCompressedSize(packed, packed_length);
        size_t n = ZSTD_isError(frame) ? frame
                                       : ZSTD_decompressDCtx(context, bytes + written,
                                                             length - written, packed, frame);

        if (ZSTD_isError(n)) {
            result = -EIO;
            break;
        }
        written += n;
        packed += frame;
        packed_length -= frame;
    }
    ZSTD_freeDCtx(context);
    return result;
}

int inflate_cluster(uint8_t type, const unsigned char *packed, size_t packed_length,
                    unsigned char *bytes, size_t length)
{
    switch (type) {
    case FORMAT_COMPRESSION_ZLIB:
        return inflate_deflate(packed, packed_length, bytes, length);
    case FORMAT_COMPRESSION_ZSTD:
        return inflate_zstd(packed, packed_length, bytes, length);
    default:
        return -EIO;
    }
}
