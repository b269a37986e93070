/* Makes the n-th write, sync or rename below a directory fail. Loaded with LD_PRELOAD, so that what SQLite and
 * Arrow do is counted like what Python does; armed through ctypes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char watched[4096]; /* empty: not armed */
static long seen, first;
static int number, lasting;

void fault_arm(const char *directory, long place, int error, int from_then_on) {
    seen = 0, first = place, number = error, lasting = from_then_on;
    snprintf(watched, sizeof watched, "%s", directory);
}

long fault_disarm(void) {
    watched[0] = 0;
    return seen;
}

static int path_fails(const char *path) {
    if (!watched[0] || strncmp(path, watched, strlen(watched)) != 0) return 0;
    long here = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (here != first && !(lasting && here > first)) return 0;
    errno = number;
    return 1;
}

static int file_fails(int descriptor) {
    char link[64], path[4096];
    if (!watched[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(path);
}

#define FAILING(result, name, parameters, arguments, test)                       \
    result name parameters {                                                     \
        static result (*real) parameters;                                        \
        if (!real) real = (result (*) parameters)dlsym(RTLD_NEXT, #name);        \
        return test ? -1 : real arguments;                                       \
    }

FAILING(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), file_fails(fd))
FAILING(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), file_fails(fd))
FAILING(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), file_fails(fd))
FAILING(int, ftruncate, (int fd, off_t size), (fd, size), file_fails(fd))
FAILING(int, ftruncate64, (int fd, off64_t size), (fd, size), file_fails(fd))
FAILING(int, fsync, (int fd), (fd), file_fails(fd))
FAILING(int, fdatasync, (int fd), (fd), file_fails(fd))
FAILING(int, rename, (const char *from, const char *to), (from, to), path_fails(to))
