// SPDX-License-Identifier: Apache-2.0
// test_file_lock.c: lazycow's locks against those of QEMU's tools, in both directions.
#define _GNU_SOURCE 1 // pipe2
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/file_lock.h"

struct fixture {
    char folder[64];
    char image[96];
    char overlay[96];
    int fd;
    struct error err;
};

// Runs a shell command, its output thrown away. Returns its exit code.
static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int run(const char *format, ...)
{
    char command[512];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    strncat(command, " >/dev/null 2>&1", sizeof(command) - strlen(command) - 1);

    int status = system(command);
    assert_true(WIFEXITED(status));
    assert_int_not_equal(WEXITSTATUS(status), 127); // the tool is there
    return WEXITSTATUS(status);
}

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof(*x));

    strcpy(x->folder, "/var/tmp/lazycow-test-lock-XXXXXX");
    assert_non_null(mkdtemp(x->folder));
    snprintf(x->image, sizeof(x->image), "%s/base.qcow2", x->folder);
    snprintf(x->overlay, sizeof(x->overlay), "%s/overlay.qcow2", x->folder);
    assert_int_equal(run("qemu-img create -f qcow2 %s 1M", x->image), 0);
    assert_int_equal(run("qemu-img create -f qcow2 -b %s -F qcow2 %s", x->image, x->overlay), 0);
    x->fd = open(x->image, O_RDWR | O_CLOEXEC);
    assert_true(x->fd >= 0);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *x = *state;

    close(x->fd);
    unlink(x->image);
    unlink(x->overlay);
    assert_int_equal(rmdir(x->folder), 0);
    free(x);
    return 0;
}

// A qemu-io that has an image open until its standard input ends.
struct holder {
    pid_t pid;
    int input;
};

static struct holder hold(const char *image, bool read_only)
{
    struct holder holder;
    int input[2];
    int output[2];
    char byte = 0;

    assert_int_equal(pipe2(input, O_CLOEXEC), 0);
    assert_int_equal(pipe2(output, O_CLOEXEC), 0);
    holder.pid = fork();
    assert_true(holder.pid >= 0);
    if (holder.pid == 0) {
        dup2(input[0], 0);
        dup2(output[1], 1);
        execlp("qemu-io", "qemu-io", "-f", "qcow2", image, read_only ? "-r" : NULL, NULL);
        _exit(127);
    }
    close(input[0]);
    close(output[1]);
    // An answer to its command shows that the image is open.
    assert_int_equal(write(input[1], "length\n", 7), 7);
    while (byte != '\n' && read(output[0], &byte, 1) == 1) {
    }
    assert_int_equal(byte, '\n');
    close(output[0]);
    holder.input = input[1];
    return holder;
}

static void release(struct holder holder)
{
    int status;

    close(holder.input);
    assert_int_equal(waitpid(holder.pid, &status, 0), holder.pid);
}

static void refused(struct fixture *x, int fd, enum file_lock_role role)
{
    assert_int_equal(file_lock(fd, role, x->image, &x->err), -EAGAIN);
    assert_ptr_equal(strstr(x->err.text, x->image), x->err.text);
    assert_non_null(strstr(x->err.text, "another process"));
    assert_null(strchr(x->err.text, '\n'));
}

static void granted(struct fixture *x, int fd, enum file_lock_role role)
{
    if (file_lock(fd, role, x->image, &x->err) != 0)
        fail_msg("%s", x->err.text);
}

static void test_writer_keeps_qemu_out(void **state)
{
    struct fixture *x = *state;

    granted(x, x->fd, FILE_LOCK_WRITER);
    assert_int_not_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s", x->image), 0);
    assert_int_not_equal(run("qemu-io -f qcow2 -r -c 'read 0 512' %s", x->image), 0);
    assert_int_not_equal(run("qemu-img check %s", x->image), 0);
    assert_int_not_equal(run("qemu-img snapshot -c a %s", x->image), 0);
    assert_int_not_equal(run("qemu-img info %s", x->image), 0);
    assert_int_not_equal(run("qemu-io -f qcow2 -r -c 'read 0 512' %s", x->overlay), 0);
    assert_int_equal(run("qemu-img info -U %s", x->image), 0);
    close(x->fd);
    x->fd = open(x->image, O_RDWR | O_CLOEXEC);
    assert_int_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s", x->image), 0);
}

static void test_reader_lets_readers_in(void **state)
{
    struct fixture *x = *state;

    granted(x, x->fd, FILE_LOCK_READER);
    assert_int_equal(run("qemu-io -f qcow2 -r -c 'read 0 512' %s", x->image), 0);
    assert_int_equal(run("qemu-img check %s", x->image), 0);
    assert_int_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s", x->overlay),
                     0); // its backing file
    assert_int_not_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s", x->image), 0);
    assert_int_not_equal(run("qemu-img snapshot -c a %s", x->image), 0);
}

static void test_qemu_writer_keeps_us_out(void **state)
{
    struct fixture *x = *state;
    struct holder writer = hold(x->image, false);

    refused(x, x->fd, FILE_LOCK_WRITER);
    refused(x, x->fd, FILE_LOCK_READER);
    release(writer);
    granted(x, x->fd, FILE_LOCK_WRITER);
}

static void test_qemu_reader_lets_us_read(void **state)
{
    struct fixture *x = *state;
    struct holder reader = hold(x->image, true);

    refused(x, x->fd, FILE_LOCK_WRITER);
    granted(x, x->fd, FILE_LOCK_READER);
    release(reader);
}

static void test_backing_file_of_qemu(void **state)
{
    struct fixture *x = *state;
    struct holder user = hold(x->overlay, false);

    refused(x, x->fd, FILE_LOCK_WRITER);
    granted(x, x->fd, FILE_LOCK_READER);
    release(user);
}

static void test_ours_among_themselves(void **state)
{
    struct fixture *x = *state;
    int other = open(x->image, O_RDONLY | O_CLOEXEC);

    granted(x, x->fd, FILE_LOCK_READER);
    granted(x, other, FILE_LOCK_READER);
    close(x->fd);
    x->fd = open(x->image, O_RDWR | O_CLOEXEC);
    refused(x, x->fd, FILE_LOCK_WRITER);
    close(other);
    granted(x, x->fd, FILE_LOCK_WRITER);
    other = open(x->image, O_RDWR | O_CLOEXEC);
    refused(x, other, FILE_LOCK_READER);
    refused(x, other, FILE_LOCK_WRITER);
    close(other);
}

// A refused locker holds nothing, although its descriptor is still open.
static void test_refusal_leaves_nothing(void **state)
{
    struct fixture *x = *state;
    struct holder writer = hold(x->image, false);

    refused(x, x->fd, FILE_LOCK_WRITER);
    refused(x, x->fd, FILE_LOCK_READER);
    release(writer);
    assert_int_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s", x->image), 0);
}

// The bytes of a file that are locked, one bit each, as /proc/locks has them.
struct lock_bytes {
    bool locked[256];
};

static struct lock_bytes locks_of(const char *image)
{
    struct lock_bytes bytes = {{false}};
    struct stat st;
    char line[256];
    FILE *locks = fopen("/proc/locks", "r");

    assert_non_null(locks);
    assert_int_equal(stat(image, &st), 0);
    while (fgets(line, sizeof(line), locks) != NULL) {
        unsigned long inode;
        unsigned first;
        unsigned last;

        if (sscanf(line, "%*s OFDLCK ADVISORY READ %*s %*x:%*x:%lu %u %u", &inode, &first, &last) !=
                3 ||
            inode != st.st_ino)
            continue;
        for (unsigned byte = first; byte <= last && byte < 256; byte++)
            bytes.locked[byte] = true;
    }
    fclose(locks);
    return bytes;
}

static void test_same_bytes_as_qemu(void **state)
{
    struct fixture *x = *state;

    for (int read_only = 0; read_only < 2; read_only++) {
        struct holder qemu = hold(x->image, read_only);
        struct lock_bytes theirs = locks_of(x->image);

        release(qemu);
        int fd = open(x->image, O_RDWR | O_CLOEXEC);
        granted(x, fd, read_only ? FILE_LOCK_READER : FILE_LOCK_WRITER);
        struct lock_bytes ours = locks_of(x->image);
        close(fd);
        assert_true(ours.locked[100]);
        assert_memory_equal(&ours, &theirs, sizeof(ours));
    }
}

static void test_bad_descriptor(void **state)
{
    struct fixture *x = *state;

    assert_int_equal(file_lock(-1, FILE_LOCK_READER, x->image, &x->err), -EBADF);
    assert_non_null(strstr(x->err.text, x->image));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_writer_keeps_qemu_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reader_lets_readers_in, setup, teardown),
        cmocka_unit_test_setup_teardown(test_qemu_writer_keeps_us_out, setup, teardown),
        cmocka_unit_test_setup_teardown(test_qemu_reader_lets_us_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backing_file_of_qemu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ours_among_themselves, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusal_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_same_bytes_as_qemu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_descriptor, setup, teardown),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
