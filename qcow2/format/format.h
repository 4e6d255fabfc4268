// SPDX-License-Identifier: Apache-2.0
// format.h: the layout of a qcow2 file. Every number on disk is big-endian; decode it with the
// format_get and format_put functions below. Format: qcow2 specification.
#ifndef LAZYCOW_QCOW2_FORMAT_FORMAT_H
#define LAZYCOW_QCOW2_FORMAT_FORMAT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

// ---- Header ("Header") --------------------------------------------------------------------------
//
// OFFSET SIZE MEANING
//      0    4 magic: 'Q' 'F' 'I' 0xfb
//      4    4 version: 2 or 3
//      8    8 offset of the backing file name, 0 = no backing file; inside the first cluster
//     16    4 length of the backing file name, at most 1023
//     20    4 cluster_bits: a cluster has 1 << cluster_bits bytes
//     24    8 size of the guest disk
//     32    4 crypt_method: 0 none, 1 AES, 2 LUKS
//     36    4 entries of the active L1 table
//     40    8 offset of the active L1 table
//     48    8 offset of the refcount table
//     56    4 clusters of the refcount table
//     60    4 number of snapshots
//     64    8 offset of the snapshot table
//   ---- version 3 only; version 2 has 0, 0, 0, 4 and 72 ----
//     72    8 incompatible features
//     80    8 compatible features
//     88    8 autoclear features
//     96    4 refcount_order: a refcount has 1 << refcount_order bits, at most 6
//    100    4 length of the header, a multiple of 8, at least 104
//    104    1 compression type: 0 zlib, 1 zstd (present if the header length covers it)
//    105    7 padding
//
// Header extensions follow at the header's length.
#define FORMAT_MAGIC 0x514649fbu

#define FORMAT_HEADER_MAGIC 0
#define FORMAT_HEADER_VERSION 4
#define FORMAT_HEADER_BACKING_OFFSET 8
#define FORMAT_HEADER_BACKING_LENGTH 16
#define FORMAT_HEADER_CLUSTER_BITS 20
#define FORMAT_HEADER_SIZE 24
#define FORMAT_HEADER_CRYPT_METHOD 32
#define FORMAT_HEADER_L1_SIZE 36
#define FORMAT_HEADER_L1_OFFSET 40
#define FORMAT_HEADER_REFCOUNT_TABLE_OFFSET 48
#define FORMAT_HEADER_REFCOUNT_TABLE_CLUSTERS 56
#define FORMAT_HEADER_SNAPSHOT_COUNT 60
#define FORMAT_HEADER_SNAPSHOT_OFFSET 64
#define FORMAT_HEADER_V2_BYTES 72
#define FORMAT_HEADER_INCOMPATIBLE 72
#define FORMAT_HEADER_COMPATIBLE 80
#define FORMAT_HEADER_AUTOCLEAR 88
#define FORMAT_HEADER_REFCOUNT_ORDER 96
#define FORMAT_HEADER_LENGTH 100
#define FORMAT_HEADER_V3_BYTES_MIN 104
#define FORMAT_HEADER_COMPRESSION_TYPE 104
#define FORMAT_HEADER_V3_BYTES 112

#define FORMAT_CRYPT_NONE 0
#define FORMAT_CRYPT_AES 1
#define FORMAT_CRYPT_LUKS 2

#define FORMAT_COMPRESSION_ZLIB 0
#define FORMAT_COMPRESSION_ZSTD 1

#define FORMAT_REFCOUNT_ORDER_V2 4
#define FORMAT_REFCOUNT_ORDER_MAX 6

// ---- Header extensions ("Header extensions") ----------------------------------------------------
//
// OFFSET SIZE MEANING
//      0    4 type
//      4    4 length of the data
//      8    n data, padded to a multiple of 8
#define FORMAT_EXTENSION_BYTES 8
#define FORMAT_EXTENSION_END 0x00000000u
#define FORMAT_EXTENSION_BACKING_FORMAT 0xe2792acau
#define FORMAT_EXTENSION_FEATURE_NAMES 0x6803f857u
#define FORMAT_EXTENSION_BITMAPS 0x23852875u
// Type of an extension that was dropped and has others behind it: readers skip unknown types
// ("none" in ASCII).
#define FORMAT_EXTENSION_NONE 0x6e6f6e65u
#define FORMAT_EXTENSION_CRYPTO 0x0537be77u
#define FORMAT_EXTENSION_DATA_FILE 0x44415441u

// An entry of the feature name table ("Feature name table").
//
// OFFSET SIZE MEANING
//      0    1 kind: 0 incompatible, 1 compatible, 2 autoclear
//      1    1 bit number
//      2   46 name, padded with zeros, not terminated at full length
#define FORMAT_FEATURE_NAME_BYTES 48
#define FORMAT_FEATURE_NAME_LENGTH 46
#define FORMAT_FEATURE_INCOMPATIBLE 0
#define FORMAT_FEATURE_COMPATIBLE 1
#define FORMAT_FEATURE_AUTOCLEAR 2

// The bitmaps extension ("Bitmaps extension").
//
// OFFSET SIZE MEANING
//      0    4 number of bitmaps
//      4    4 reserved
//      8    8 bytes of the bitmap directory
//     16    8 offset of the bitmap directory
#define FORMAT_BITMAPS_EXTENSION_BYTES 24
#define FORMAT_BITMAPS_COUNT 0
#define FORMAT_BITMAPS_DIRECTORY_SIZE 8
#define FORMAT_BITMAPS_DIRECTORY_OFFSET 16
#define FORMAT_AUTOCLEAR_BITMAPS (1ull << 0)

// An entry of the bitmap directory ("Bitmap directory").
//
// OFFSET SIZE MEANING
//      0    8 offset of the bitmap table
//      8    4 entries of the bitmap table, 8 bytes each
//     12    4 flags
//     16    1 type
//     17    1 granularity bits
//     18    2 length of the name
//     20    4 length of the extra data
//     24    n extra data, name, padding to a multiple of 8
#define FORMAT_BITMAP_ENTRY_BYTES 24
#define FORMAT_BITMAP_TABLE_OFFSET 0
#define FORMAT_BITMAP_TABLE_SIZE 8
#define FORMAT_BITMAP_FLAGS 12
#define FORMAT_BITMAP_GRANULARITY 17
#define FORMAT_BITMAP_NAME_LENGTH 18
#define FORMAT_BITMAP_EXTRA_LENGTH 20
#define FORMAT_BITMAP_TABLE_ENTRY_OFFSET 0x00fffffffffffe00ull
#define FORMAT_BITMAP_TABLE_ENTRY_RESERVED 0xff000000000001feull

// The crypto header extension ("Full disk encryption header pointer"): offset and length of the
// LUKS header, 8 bytes each.
#define FORMAT_CRYPTO_EXTENSION_BYTES 16

// ---- Tables -------------------------------------------------------------------------------------

#define FORMAT_ENTRY_BYTES 8 // of L1, L2 and refcount table entries

// Refcount table entry: bits 9..63 offset of a refcount block, 0: all refcounts of that block are
// 0.
#define FORMAT_REFCOUNT_TABLE_OFFSET_MASK 0xfffffffffffffe00ull
#define FORMAT_REFCOUNT_TABLE_RESERVED 0x00000000000001ffull

// L1 entry: bits 9..55 offset of an L2 table, 0 = none; bit 63 COPIED.
#define FORMAT_L1_OFFSET_MASK 0x00fffffffffffe00ull
#define FORMAT_L1_RESERVED 0x7f000000000001ffull

// L2 entry, standard cluster (bit 62 clear): bit 0 reads as zeros (version 3), bits 9..55 offset of
// the cluster, bit 63 COPIED.
#define FORMAT_L2_OFFSET_MASK 0x00fffffffffffe00ull
#define FORMAT_L2_RESERVED 0x3f000000000001feull // version 2 reserves bit 0 as well
#define FORMAT_L2_ZERO (1ull << 0)

// The refcount of the cluster or table is exactly one, so that it may be written in place.
#define FORMAT_COPIED (1ull << 63)
#define FORMAT_COMPRESSED (1ull << 62)

// L2 entry, compressed cluster (bit 62 set), with x = 62 - (cluster_bits - 8): bits 0..x-1 offset
// of the data, at any byte; bits x..61 how many 512-byte sectors it touches beyond the first one.
#define FORMAT_COMPRESSED_SECTOR 512u

static inline unsigned format_compressed_shift(unsigned cluster_bits)
{
    return 62 - (cluster_bits - 8);
}

// Returns the offset of the first byte of the compressed data.
static inline uint64_t format_compressed_offset(uint64_t entry, unsigned cluster_bits)
{
    return entry & ((1ull << format_compressed_shift(cluster_bits)) - 1);
}

// Returns the bytes from that offset to the end of the last sector of the data: the most that the
// data can have.
static inline uint64_t format_compressed_length(uint64_t entry, unsigned cluster_bits)
{
    uint64_t sectors = (entry & (FORMAT_COMPRESSED - 1)) >> format_compressed_shift(cluster_bits);
    return (sectors + 1) * FORMAT_COMPRESSED_SECTOR -
           format_compressed_offset(entry, cluster_bits) % FORMAT_COMPRESSED_SECTOR;
}

// ---- Snapshot table ("Snapshots") ---------------------------------------------------------------
//
// OFFSET SIZE MEANING
//      0    8 offset of the snapshot's L1 table
//      8    4 entries of that table
//     12    2 length of the id
//     14    2 length of the name
//     16    4 seconds since 1970 when it was taken
//     20    4 and nanoseconds
//     24    8 time the guest was running, in nanoseconds
//     32    4 bytes of VM state, 0 = none
//     36    4 length of the extra data, at least 16 in version 3
//     40    n extra data: 0 8 bytes of VM state · 8 8 size of the disk · 16 8 icount
//           then id, name, padding to a multiple of 8
#define FORMAT_SNAPSHOT_BYTES 40
#define FORMAT_SNAPSHOT_L1_OFFSET 0
#define FORMAT_SNAPSHOT_L1_SIZE 8
#define FORMAT_SNAPSHOT_ID_LENGTH 12
#define FORMAT_SNAPSHOT_NAME_LENGTH 14
#define FORMAT_SNAPSHOT_SECONDS 16
#define FORMAT_SNAPSHOT_NANOSECONDS 20
#define FORMAT_SNAPSHOT_VM_CLOCK 24
#define FORMAT_SNAPSHOT_VM_STATE_SIZE 32
#define FORMAT_SNAPSHOT_EXTRA_LENGTH 36
#define FORMAT_SNAPSHOT_EXTRA_VM_STATE 0
#define FORMAT_SNAPSHOT_EXTRA_DISK_SIZE 8
#define FORMAT_SNAPSHOT_EXTRA_ICOUNT 16

// ---- Big-endian access, at any alignment --------------------------------------------------------

static inline uint16_t format_get16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static inline uint32_t format_get32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static inline uint64_t format_get64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return be64toh(v);
}

static inline void format_put16(void *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void format_put32(void *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void format_put64(void *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof(v));
}

#endif
