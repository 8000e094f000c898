/* Makes the disk full for one folder: from the N-th write in it on (or for that one alone) the system says ENOSPC.
   Part of benchmarks/full_disk.py, which compiles this, loads it by LD_PRELOAD and calls arm(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static size_t root_length;
static long turn, fails_at, is_once;
static int report = -1;

/* file: gets a line for each write: its number, what it is, the path, and whether it failed. */
void arm(const char *folder, long at, long once, int file) {
    turn = 0, fails_at = at, is_once = once, report = file;
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
}

static int is_inside(const char *path) { return root_length && strncmp(path, root, root_length) == 0; }

static ssize_t (*real_write)(int, const void *, size_t);

static int is_refused(const char *what, const char *path) {
    if (!is_inside(path)) return 0;
    turn++;
    int fails = fails_at && (is_once ? turn == fails_at : turn >= fails_at);
    char line[5000];
    int length = snprintf(line, sizeof line, "%ld %s %s %d\n", turn, what, path + root_length, fails);
    if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
    if (report >= 0) real_write(report, line, length);
    if (fails) errno = ENOSPC;
    return fails;
}

static int is_refused_fd(const char *what, int fd) {
    if (!root_length || fd == report) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_refused(what, path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                                     \
    int name(const char *path, int flags, ...) {                                                       \
        REAL(name);                                                                                    \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);         \
        if ((flags & O_CREAT) && access(path, F_OK) && is_refused("create", path)) return -1;          \
        return real(path, flags, mode);                                                                \
    }
#define OPENAT(name)                                                                                   \
    int name(int at, const char *path, int flags, ...) {                                               \
        REAL(name);                                                                                    \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);         \
        if ((flags & O_CREAT) && access(path, F_OK) && is_refused("create", path)) return -1;          \
        return real(at, path, flags, mode);                                                            \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return is_refused_fd("write", fd) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); return is_refused_fd("write", fd) ? -1 : real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); return is_refused_fd("write", fd) ? -1 : real(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int num) { REAL(writev); return is_refused_fd("write", fd) ? -1 : real(fd, parts, num); }
ssize_t sendfile(int out, int in, off_t *at, size_t size);
ssize_t sendfile(int out, int in, off_t *at, size_t size) { REAL(sendfile); return is_refused_fd("write", out) ? -1 : real(out, in, at, size); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t size);
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) { REAL(sendfile64); return is_refused_fd("write", out) ? -1 : real(out, in, at, size); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); return is_refused_fd("truncate", fd) ? -1 : real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return is_refused_fd("truncate", fd) ? -1 : real(fd, size); }
int fsync(int fd) { REAL(fsync); return is_refused_fd("sync", fd) ? -1 : real(fd); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return is_refused("mkdir", path) ? -1 : real(path, mode); }
int rename(const char *from, const char *to) { REAL(rename); return is_refused("rename", to) ? -1 : real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); return is_refused("rename", to) ? -1 : real(a, from, b, to); }
