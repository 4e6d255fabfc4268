// SPDX-License-Identifier: Apache-2.0
// inflate.h: the bytes of a compressed cluster. Pure work on private buffers, for any thread. Format:
// qcow2 specification, "Compressed Clusters Descriptor", and "compression_type" of the header.
#ifndef LAZYCOW_QCOW2_CODEC_INFLATE_H
#define LAZYCOW_QCOW2_CODEC_INFLATE_H

#include <stddef.h>
#include <stdint.h>

// Fills length bytes, one cluster. type is a FORMAT_COMPRESSION_…; packed may go on behind the
// data, as its length counts whole sectors. Takes no more memory than a fixed working area,
// whatever the data says. Returns 0, -ENOMEM, or -EIO where it is no such data or not as much.
int inflate_cluster(uint8_t type, const unsigned char *packed, size_t packed_length,
                    unsigned char *bytes, size_t length);

#endif
