// SPDX-License-Identifier: Apache-2.0
// inflate.h: inflates a compressed cluster. Works on private buffers only, so that any thread may
// call it. Format: qcow2 specification, "Compressed Clusters Descriptor", and "compression_type" of
// the header.
#ifndef LAZYCOW_QCOW2_CODEC_INFLATE_H
#define LAZYCOW_QCOW2_CODEC_INFLATE_H

#include <stddef.h>
#include <stdint.h>

// Fills length bytes, one cluster. type is a FORMAT_COMPRESSION_…. packed may be longer than the
// compressed data, because its length counts whole sectors. Uses a fixed working area, whatever the
// data says. Returns 0, -ENOMEM, or -EIO when the data is invalid or yields less than a cluster.
int inflate_cluster(uint8_t type, const unsigned char *packed, size_t packed_length,
                    unsigned char *bytes, size_t length);

#endif
