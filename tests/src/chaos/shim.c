// Loaded into a daemon with LD_PRELOAD: a disk that is full, fails or is slow, and a wall clock that is wrong, switched on
// and off from outside while the daemon runs.
//
//   ANABRANCH_CHAOS_DIR       the directory whose files are on the bad disk (absolute)
//   ANABRANCH_CHAOS_CONTROL   a file of four little-endian i64, read through a shared mapping:
//                             clock offset in seconds, no space (0 or 1), syncs fail (0 or 1), delay of a sync in ms
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t quiet[4];
static const volatile int64_t *control = quiet;
static char dir[PATH_MAX];
static size_t dir_len;
enum { OFFSET_S, NO_SPACE, SYNC_FAILS, SYNC_MS };

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("ANABRANCH_CHAOS_DIR"), *file = getenv("ANABRANCH_CHAOS_CONTROL");
  if (!path || !file) return;
  snprintf(dir, sizeof dir, "%s", path);
  dir_len = strlen(dir);
  REAL(int, "open64", const char *, int, ...);
  int fd = real(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) abort();
  void *map = mmap(NULL, sizeof quiet, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) abort();
  control = map;
}

static int inside(const char *path) {
  return strncmp(path, dir, dir_len) == 0 && (path[dir_len] == '/' || path[dir_len] == 0);
}

static int bad(int what, int fd) {
  if (!control[what]) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t len = readlink(link, path, sizeof path - 1);
  if (len <= 0) return 0;
  path[len] = 0;
  return inside(path);
}

#define FULL(fd) \
  if (bad(NO_SPACE, fd)) { \
    errno = ENOSPC; \
    return -1; \
  }

ssize_t write(int fd, const void *data, size_t len) { REAL(ssize_t, "write", int, const void *, size_t); FULL(fd) return real(fd, data, len); }
ssize_t writev(int fd, const struct iovec *parts, int count) { REAL(ssize_t, "writev", int, const struct iovec *, int); FULL(fd) return real(fd, parts, count); }
ssize_t pwrite(int fd, const void *data, size_t len, off_t at) { REAL(ssize_t, "pwrite", int, const void *, size_t, off_t); FULL(fd) return real(fd, data, len, at); }
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) { REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t); FULL(fd) return real(fd, data, len, at); }

static int syncing(int fd, int (*real)(int)) {
  if (bad(SYNC_FAILS, fd)) {
    errno = EIO;
    return -1;
  }
  if (bad(SYNC_MS, fd)) usleep((useconds_t)control[SYNC_MS] * 1000);
  return real(fd);
}
int fsync(int fd) { REAL(int, "fsync", int); return syncing(fd, real); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); return syncing(fd, real); }

#define CREATING(name, at) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list list; \
    va_start(list, flags); \
    mode = va_arg(list, mode_t); \
    va_end(list); \
  } \
  if ((flags & O_CREAT) && control[NO_SPACE] && path[0] == '/' && inside(path) && faccessat(at, path, F_OK, 0) != 0) { \
    errno = ENOSPC; \
    return -1; \
  }

int open(const char *path, int flags, ...) { REAL(int, "open", const char *, int, ...); CREATING("open", AT_FDCWD) return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { REAL(int, "open64", const char *, int, ...); CREATING("open64", AT_FDCWD) return real(path, flags, mode); }

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(int, "clock_gettime", clockid_t, struct timespec *);
  int done = real(clock, now);
  if (done == 0 && clock == CLOCK_REALTIME) now->tv_sec += control[OFFSET_S];
  return done;
}
