#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks one rule of the engine or the bridge at a time, in a copy, and tells the first seed from 1
on with which the simulator notices: the table of docs/simulator.md.

    tests/sim/breakages.py [--count 10000] [TEXT...]     only rows that have one of the texts

A row is a rule, what is done against it, a file, and the text that is replaced there; the text must
be there exactly once. Exit code 1 where a row no longer fits the code.
"""
import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FLAGS = ["-O2", "-g", "-std=gnu17", "-D_GNU_SOURCE", "-I."]
LIBRARIES = ["-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=posix_memalign", "-lz",
             "-ldeflate", "-lzstd"]
# What the simulator takes of server/.
BRIDGE = ["access", "budget", "buffer_pool", "client", "client_request", "client_shared", "export",
          "log"]

SYNC, WRITE, RECOVER = "qcow2/durable/sync.c", "qcow2/request/write.c", "qcow2/durable/recover.c"
REFCOUNT_WRITE = "qcow2/durable/refcount_write.c"

ROWS = [
    ("2, 4: first barrier", "`first_barrier`: always `return SYNC_TABLES`", SYNC,
     "    if (!image->sync.needs_first)\n        return SYNC_TABLES;\n"
     "    return submit_barrier(image, SYNC_TABLES);",
     "    (void)image;\n    return SYNC_TABLES;"),
    ("1: last barrier", "`last_barrier`: `return SYNC_DURABLE`", SYNC,
     "    return submit_barrier(image, SYNC_DURABLE);", "    (void)image;\n    return SYNC_DURABLE;"),
    ("1: a flush waits for the sync that runs",
     "`sync_flush`: `return 0` instead of parking on `current`", SYNC,
     "        return waitq_park(&sync->current, op);\n    return 0;",
     "        return 0;\n    return 0;"),
    ("1: who comes later takes the next sync", "`sync_wait`: park on `current` while a sync runs",
     SYNC, "    return waitq_park(&op->image->sync.waiting, op);",
     "    return waitq_park(op->image->sync.op.state > SYNC_BEGIN &&\n"
     "                              op->image->sync.op.state <= SYNC_DURABLE\n"
     "                          ? &op->image->sync.current\n"
     "                          : &op->image->sync.waiting,\n                      op);"),
    ("1: FUA waits", "`write_step`: never `sync_wait`", WRITE,
     "if (result == 0 && (op->flags & OP_FUA)) {", "if (false) {"),
    ("2: data before its entry, old content not zeros",
     "`plan_edges`: `needs_barrier = !zero_target`", WRITE,
     "needs_barrier = !s->all_zero || !zero_target;", "needs_barrier = !zero_target;"),
    ("2: data before its entry, cluster used before", "`plan_edges`: `needs_barrier = !s->all_zero`",
     WRITE, "needs_barrier = !s->all_zero || !zero_target;", "needs_barrier = !s->all_zero;"),
    ("2: the same for zeros", "`provide`: `needs_barrier = false`", "qcow2/request/zero.c",
     "needs_barrier = !run->zero;", "needs_barrier = false;"),
    ("2: used clusters hold old bytes", "`take_free`: `.zero = true`", "qcow2/space/alloc.c",
     ".count = found, .zero = false", ".count = found, .zero = true"),
    ("2: so does fresh space of a device", "`take_fresh`: `.zero = true`", "qcow2/space/alloc.c",
     ".zero = image->file->fresh_is_zero", ".zero = true"),
    ("2: so do zero clusters with one in reserve", "`use_reserved`: `plan_edges(op, &s, true)`", WRITE,
     "return plan_edges(op, &s, false);", "return plan_edges(op, &s, true);"),
    ("NO_HOLE: the space is kept", "`wanted_entry`: as without the flag", "qcow2/request/zero.c",
     "    if (op->flags & OP_NO_HOLE)\n        return false;\n    if (!behind)", "    if (!behind)"),
    ("holes are known until a change", "`note_change`: nothing", "qcow2/base/file.c",
     "    if (!known)\n        return;", "    return;"),
    ("3: a copied L2 table before its L1 entry", "`copy_step`: no `barrier_needed`",
     "qcow2/mapping/l2_table.c", "        image->sync.barrier_needed = true;\n", ""),
    ("3: a new L2 table in fresh space",
     "`l2_table_own`: `alloc_clusters(op, 1, false, …)`, `run.zero = true`", "qcow2/mapping/l2_table.c",
     "int result = alloc_clusters(op, 1, image->file->fresh_is_zero, &run);",
     "int result = alloc_clusters(op, 1, false, &run);\n    run.zero = true;"),
    ("4: dirty bit before the tables", "`write_header`: `needs_first` not set", SYNC,
     "    sync->needs_first = true;\n    return submit_header(image, SYNC_REFCOUNTS);",
     "    return submit_header(image, SYNC_REFCOUNTS);"),
    ("4: dirty bit at all", "`write_header`: go on without writing it", SYNC,
     "    sync->needs_first = true;\n    return submit_header(image, SYNC_REFCOUNTS);",
     "    return SYNC_REFCOUNTS;"),
    ("4: written again after it failed", "`durable`: `dirty_unsure` not set", SYNC,
     "        sync->dirty_unsure |= sync->set_dirty;\n", ""),
    ("4: refcounts before L2 without lazy refcounts", "`write_refcounts`: `needs_first` not set", SYNC,
     "    sync->needs_first = true;\n    sync->op.wait_result = result;",
     "    sync->op.wait_result = result;"),
    ("4: refcounts at all then", "`write_refcounts`: `true ||` before the first condition", SYNC,
     "if (lazy_now(image) || sync->writeback", "if (true || lazy_now(image) || sync->writeback"),
    ("5: quarantine until the sync", "`quarantine_add`: into `durable`, and kick",
     "qcow2/space/quarantine.c",
     "    TAILQ_INSERT_TAIL(&q->pending, extent, link);\n    q->count++;",
     "    TAILQ_INSERT_TAIL(&q->durable, extent, link);\n    q->count++;\n    quarantine_kick(image);"),
    ("5: also when the sync failed", "`quarantine_sync_ended`: `failed = false`",
     "qcow2/space/quarantine.c", "    if (failed) {", "    failed = false;\n    if (failed) {"),
    ("quarantine.h: until ops have ended", "`next_extent`: ops are not looked at",
     "qcow2/space/quarantine.c", "if (extent && oldest && oldest->begun < extent->stamp)",
     "if (false && extent && oldest && oldest->begun < extent->stamp)"),
    ("a zeroed cluster that keeps its place: older writes end first", "`replace_entries`: no `drain`",
     "qcow2/request/zero.c", "    if (keeps)\n        return drain(op, clusters);",
     "    if (false)\n        return drain(op, clusters);"),
    ("private copies", "`submit_run`: a single L2 slice from `slice->entries`", "qcow2/durable/writeback.c",
     "    slot->io = (struct file_io){.kind = FILE_WRITE,",
     "    if (first->kind == WRITEBACK_L2 && first == &wb->pieces[wb->next - 1])\n"
     "        slot->iov.iov_base = first->slice->entries;\n"
     "    slot->io = (struct file_io){.kind = FILE_WRITE,"),
    ("copies of the moment the sync began", "`write_tables`: `memcpy` the slices again", SYNC,
     "    sync->op.state = SYNC_WRITTEN;\n    writeback_start",
     "    for (size_t i = 0; i < sync->writeback.count; i++)\n"
     "        if (sync->writeback.pieces[i].kind == WRITEBACK_L2)\n"
     "            memcpy(sync->writeback.buffer + sync->writeback.pieces[i].at,\n"
     "                   sync->writeback.pieces[i].slice->entries, sync->writeback.pieces[i].length);\n"
     "    sync->op.state = SYNC_WRITTEN;\n    writeback_start"),
    ("slices stay while they are written", "`evict`: `writing` not looked at", "qcow2/mapping/cache.c",
     "slice->dirty || slice->writing || slice->referenced", "slice->dirty || slice->referenced"),
    ("a failed barrier is latched", "`latch`: no `latched_error`", SYNC,
     "    image->latched_error = -EIO;\n", ""),
    ("and nothing is written after it", "`begin`: `result = 0` instead of `latched_error`", SYNC,
     "int result = image->latched_error;\n    if (result == 0)\n        result = copy_slices",
     "int result = 0;\n    if (result == 0)\n        result = copy_slices"),
    ("what was not written is dirty again", "`durable`: `settle_copies(image, false)`", SYNC,
     "settle_copies(image, result < 0);", "settle_copies(image, false);"),
    ("refcount block before its table entry", "no barrier in `REFCOUNT_WRITE_BARRIER`", REFCOUNT_WRITE,
     "result = barrier(op, rw, REFCOUNT_WRITE_TABLE);", "rw->state = REFCOUNT_WRITE_TABLE;"),
    ("refcount table before the pointer", "no barrier in `REFCOUNT_WRITE_POINTER`", REFCOUNT_WRITE,
     "result = barrier(op, rw, REFCOUNT_WRITE_POINTED);", "rw->state = REFCOUNT_WRITE_POINTED;"),
    ("the pointer before what follows", "`moved`: no barrier", REFCOUNT_WRITE,
     "    sync_submit_barrier(&op->image->sync);\n    return OP_PARKED;\n}\n\n// What of a failed",
     "    return 0;\n}\n\n// What of a failed"),
    ("refcounts before the dirty bit goes", "`clean_refcounts`: no barrier", SYNC,
     "return result < 0 ? end(image, result) : submit_barrier(image, SYNC_CLEAN_BARRIER);",
     "return result < 0 ? end(image, result) : SYNC_CLEAN_BARRIER;"),
    ("not over tables in memory, or under ops", "`at_rest`: `true`", SYNC,
     "    return image->sync.clean_final ||\n", "    return true || image->sync.clean_final ||\n"),
    ("not before the quarantine is empty", "`may_clean`: `quarantine_empty` not asked", SYNC,
     "at_rest(image) && quarantine_empty(&image->quarantine) &&", "at_rest(image) &&"),
    ("a barrier that a failed sync asked for", "`durable`: `barrier_needed` forgotten", SYNC,
     "        sync->barrier_needed |= sync->needs_first;\n", ""),
    ("recovery cuts the file", "`recover_step`: `size < end` instead of `!=`", RECOVER,
     "(uint64_t)size != end &&", "(uint64_t)size < end &&"),
    ("and makes it longer", "`recover_step`: `size > end` instead of `!=`", RECOVER,
     "(uint64_t)size != end &&", "(uint64_t)size > end &&"),
    ("the cut before what refers to that space", "`recover_step`: no `barrier_needed`", RECOVER,
     "    image->sync.barrier_needed = true;\n", ""),
    ("nothing from below the highest reference",
     "`recover_step`: `size > end` instead of `!=`, and fresh space from `size` on", RECOVER,
     "    if (op->state == RECOVER_CUT && (uint64_t)size != end && image->file->fresh_is_zero) {",
     "    if ((uint64_t)size < end)\n"
     "        recovery->end = ((uint64_t)size + cluster_size - 1) / cluster_size;\n"
     "    if (op->state == RECOVER_CUT && (uint64_t)size > end && image->file->fresh_is_zero) {"),
    ("snapshots count, too", "`recover_start`: no `WALK_SNAPSHOTS`", RECOVER,
     "WALK_MAPPING | WALK_SNAPSHOTS | WALK_OTHER", "WALK_MAPPING | WALK_OTHER"),
    ("without room for refcounts: the dirty bit instead", "`write_refcounts`: no `go_on_dirty`",
     SYNC, "    if (passes(result) && image->header.version >= 3)\n", "    if (false)\n"),
    ("bitmaps: the dirty bit with their end", "`begin`: `needs_dirty` without `SYNC_DROPS_BITMAPS`",
     SYNC, "        sync->drops == SYNC_DROPS_BITMAPS || (lazy_now", "        (lazy_now"),
    ("bitmaps: their clusters are free then", "`settle_drops`: no `recover_without_bitmaps`", SYNC,
     "        recover_without_bitmaps(image, result);\n", ""),
    ("one changes a mapping at a time", "`inflight_wait`: `return 0`", "qcow2/mapping/inflight.c",
     "            return waitq_park(&other->waiters, op);", "            return 0;"),
    ("in all the clusters that are taken", "`plan_allocating`: `last` stays that of the mapping", WRITE,
     "        last = end_of(op) - 1;", "        last = last;"),
    ("no punch under a new owner", "`punch_front`: no `set_taken(…, true)`", "qcow2/space/punch.c",
     "    set_taken(image, first, punch->run, true);\n", ""),
    ("compressed clusters may touch two", "`drop_reference`: `count = 1`", "qcow2/mapping/map.c",
     "        count = ((old->host_offset + old->host_length - 1) >> bits) - first + 1;",
     "        count = 1;"),
    ("COPIED is not believed under a shared table, or beyond the fresh boundary", "`map_lookup`",
     "qcow2/mapping/map.c", "        m->copied = false;\n    return result;",
     "        return result;\n    return result;"),

    ("bridge: FUA is passed on", "`request_prepare`: no `OP_FUA`", "server/client_request.c",
     "    if (wire->flags & NBD_CMD_FLAG_FUA) {", "    if (false) {"),
    ("bridge: a flush is one", "`request_is_void`: `NBD_CMD_FLUSH`, too", "server/client_request.c",
     "    return wire->type == NBD_CMD_CACHE ||",
     "    return wire->type == NBD_CMD_CACHE || wire->type == NBD_CMD_FLUSH ||"),
    ("bridge: once stopping, what was begun is finished and answered", "`client_drained`: ops are not waited for",
     "server/client.c", "    return client_idle(client) && client_output_bytes(client) == 0;",
     "    return client_output_bytes(client) == 0;"),
    ("bridge: a payload that came in two parts", "`session_payload`: the second begins at the front",
     "protocol/session.c", "    s->payload = (uint8_t *)buffer + n;",
     "    s->payload = (uint8_t *)buffer;"),
    ("bridge: holes where they are", "`read_chunks`: each part at the offset of the request",
     "protocol/reply.c", "write_content(s, request, &run, request->offset + done, flags, out)",
     "write_content(s, request, &run, request->offset, flags, out)"),

    ("repair: refcounts before flags", "`check_repair`: no barrier between", "qcow2/offline/check_repair.c",
     "    if (ret == 0)\n        ret = barrier(pass, err);\n    if (ret == 0 && all)\n",
     "    if (ret == 0 && all)\n"),
    ("repair: new refcounts before the header", "`write_all`: no barrier before it",
     "qcow2/offline/check_rebuild.c",
     "    if (ret == 0)\n        ret = file_do_blocking(pass->file, FILE_DATASYNC, 0, 0);\n"
     "    format_put64(fields,",
     "    format_put64(fields,"),
    ("repair: the old refcounts stay until then", "`check_rebuild`: `forget_old` before `place`",
     "qcow2/offline/check_rebuild.c",
     "        ret = place(&r);\n    if (ret == 0 && !pass->hides)\n        ret = forget_old(&r);",
     "        ret = pass->hides ? 0 : forget_old(&r);\n    if (ret == 0)\n        ret = place(&r);"),
    ("repair: the dirty bit last", "`check_repair`, `mark_consistent`: no barrier before it",
     "qcow2/offline/check_repair.c", "    return ret < 0 ? ret : barrier(pass, err);\n}", "    return ret;\n}",
     "qcow2/offline/check.c",
     "    int ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);\n    format_put64(field,",
     "    int ret = 0;\n    format_put64(field,"),
    ("repair: the file's length before entries are counted", "`check_restore_growth`: no barrier",
     "qcow2/offline/check_repair.c",
     "    return ret < 0 ? failed(pass, ret, err) : barrier(pass, err);\n}\n\nint check_repair",
     "    return ret < 0 ? failed(pass, ret, err) : 0;\n}\n\nint check_repair"),
    ("repair: refcounts that are too low", "`correct_piece`: leaks only", "qcow2/offline/check_repair.c",
     "(stored < counted && counted <= max && pass->options->repair == CHECK_REPAIR_ALL);",
     "(stored < counted && counted <= max && false);"),
    ("repair: COPIED flags", "`check_repair`: no `correct_flags`", "qcow2/offline/check_repair.c",
     "        ret = correct_flags(pass, err);", "        ret = 0;"),
    ("check: leaks", "`mismatch`: not counted", "qcow2/offline/check_compare.c",
     "        pass->result.leaks++;", "        pass->result.leaks += 0;"),
]


def copy_tree(folder):
    for name in ("protocol", "qcow2", "server", "tests/sim"):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name))
    shutil.copy(os.path.join(ROOT, "tests", "memcheck.h"), os.path.join(folder, "tests"))


def sources(folder):
    found = [f for name in ("protocol", "qcow2", "tests/sim")
             for f in glob.glob(os.path.join(folder, name, "**", "*.c"), recursive=True)]
    found += [os.path.join(folder, "server", f"{name}.c") for name in BRIDGE]
    return sorted(os.path.relpath(f, folder) for f in found)


def compile_file(folder, source, output):
    subprocess.run(["cc", *FLAGS, "-c", source, "-o", output], cwd=folder, check=True)


def link(folder, objects, program):
    subprocess.run(["cc", *objects, "-o", program, *LIBRARIES], cwd=folder, check=True)


def break_row(folder, row):
    """Applies a row's edits. Returns the files with their old texts, or None where it does not fit."""
    before = {}
    edits = row[2:]
    for path, old, new in zip(edits[0::3], edits[1::3], edits[2::3]):
        with open(os.path.join(folder, path), encoding="utf-8") as file:
            text = file.read()
        if text.count(old) != 1:
            return None
        before[path] = text
        with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
            file.write(text.replace(old, new))
    return before


def first_seed(folder, program, count):
    said = subprocess.run([os.path.join(folder, program), "--seed", "1", "--count", str(count)],
                          capture_output=True, text=True, check=False)
    found = re.search(r"seed (\d+) FAILED|signal \d+ in seed (\d+)", said.stdout + said.stderr)
    return next(n for n in found.groups() if n) if found else f"not in {count}"


def try_row(folder, row, count):
    before = break_row(folder, row)
    if before is None:
        return None
    objects = []
    for source in sources(folder):
        output = source.replace("/", "-") + ".o"
        if source in before:
            output = "broken-" + output
            compile_file(folder, source, output)
        objects.append(output)
    link(folder, objects, "broken")
    for path, text in before.items():
        with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
            file.write(text)
    return first_seed(folder, "broken", count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("text", nargs="*")
    arguments = parser.parse_args()
    misfits = 0
    with tempfile.TemporaryDirectory(prefix="lazycow-breakages-") as folder:
        copy_tree(folder)
        for source in sources(folder):
            compile_file(folder, source, source.replace("/", "-") + ".o")
        print("| rule | change | first seed |\n|---|---|---|", flush=True)
        for row in ROWS:
            if arguments.text and not any(t in row[0] + row[1] for t in arguments.text):
                continue
            seed = try_row(folder, row, arguments.count)
            misfits += seed is None
            where = os.path.basename(row[2])
            print(f"| {row[0]} | `{where}` {row[1]} | {seed or 'does not fit the code'} |", flush=True)
    return 1 if misfits else 0


if __name__ == "__main__":
    sys.exit(main())
