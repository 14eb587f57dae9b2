// Loaded into a daemon with LD_PRELOAD: writes down, in order, every change that it makes to the files of one directory,
// every sync, and every line that it writes to the file of acknowledgements. One mutex makes one order of it all.
//
//   ANABRANCH_RECORD_DIR    the directory (absolute)
//   ANABRANCH_RECORD_LOG    where to write it down
//   ANABRANCH_RECORD_ACKS   the file of acknowledgements
//   ANABRANCH_FAIL_SYNC     the sync with this number (from 1) fails with EIO, once on each descriptor of its file that
//                           is open then, as the kernel reports a failed write-back: one of them may be of a library
//                           that only logs it
//
// An entry is a head of 32 bytes (little endian) and two contents:
//   u8 operation, 3 bytes 0, u32 file, u64 nanoseconds (realtime), u64 offset, u32 length 1, u32 length 2
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { OPENED = 1, CREATED, WRITE, TRUNCATE, SYNC, SYNC_DIR, RENAME, UNLINK, MKDIR, RMDIR, ACK };
enum { FDS = 65536, INODES = 65536, ACK_FILE = -1 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char dir[PATH_MAX], acks[PATH_MAX];
static size_t dir_len;
static int log_fd = -1;
static int files[FDS];  // which file a descriptor is, 0 when it is none of ours
static struct { ino_t inode; int file; } inodes[INODES];
static int known, last_file;
static long fail_sync, syncs;
static int failed;         // the file whose sync has failed
static char heard[FDS];    // whether a descriptor has reported that, or was opened later

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t raw_write(int fd, const void *data, size_t len) {
  REAL(ssize_t, "write", int, const void *, size_t);
  return real(fd, data, len);
}

static void put(const void *data, size_t len) {
  const char *at = data;
  while (len > 0) {
    ssize_t written = raw_write(log_fd, at, len);
    if (written <= 0) abort();
    at += written;
    len -= (size_t)written;
  }
}

static void note(int op, int file, uint64_t offset, const void *one, size_t one_len, const void *two, size_t two_len) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  struct __attribute__((packed)) {
    uint8_t op, zero[3];
    uint32_t file;
    uint64_t ns, offset;
    uint32_t one, two;
  } head = {(uint8_t)op, {0}, (uint32_t)file, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, offset,
            (uint32_t)one_len, (uint32_t)two_len};
  put(&head, sizeof head);
  put(one, one_len);
  put(two, two_len);
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("ANABRANCH_RECORD_DIR"), *to = getenv("ANABRANCH_RECORD_LOG");
  const char *ack = getenv("ANABRANCH_RECORD_ACKS"), *fail = getenv("ANABRANCH_FAIL_SYNC");
  if (!path || !to) return;
  snprintf(dir, sizeof dir, "%s", path);
  snprintf(acks, sizeof acks, "%s", ack ? ack : "");
  dir_len = strlen(dir);
  fail_sync = fail ? atol(fail) : 0;
  REAL(int, "open64", const char *, int, ...);
  log_fd = real(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log_fd < 0) abort();
}

// The path below the directory, or none.
static const char *below(const char *path) {
  if (log_fd < 0 || strncmp(path, dir, dir_len) != 0) return NULL;
  if (path[dir_len] == 0) return path + dir_len;
  return path[dir_len] == '/' ? path + dir_len + 1 : NULL;
}

static const char *resolve(int at, const char *path, char *buffer) {
  if (path[0] == '/') return below(path);
  char link[64], folder[PATH_MAX];
  snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
  ssize_t len = readlink(link, folder, sizeof folder - 1);
  if (len < 0) return NULL;
  folder[len] = 0;
  if (snprintf(buffer, 2 * PATH_MAX, "%s/%s", folder, path) < 0) return NULL;
  return below(buffer);
}

static int file_of(ino_t inode) {
  for (int at = 0; at < known; at++)
    if (inodes[at].inode == inode) return inodes[at].file;
  return 0;
}

static int new_file(ino_t inode) {
  last_file++;
  for (int at = 0; at < known; at++)
    if (inodes[at].inode == inode) return inodes[at].file = last_file;
  if (known == INODES) abort();
  inodes[known].inode = inode;
  inodes[known++].file = last_file;
  return last_file;
}

static int opening(int at, const char *path, int flags, mode_t mode) {
  REAL(int, "openat64", int, const char *, int, ...);
  if (log_fd < 0) return real(at, path, flags, mode);
  char buffer[2 * PATH_MAX];
  pthread_mutex_lock(&mutex);
  const char *name = resolve(at, path, buffer);
  struct stat before, after;
  int was = name && (flags & (O_CREAT | O_TRUNC)) && fstatat(at, path, &before, 0) == 0;
  int fd = real(at, path, flags, mode);
  int error = errno;
  if (fd >= 0 && fd < FDS) {
    files[fd] = 0;
    heard[fd] = failed != 0;
    if (acks[0] && strcmp(path, acks) == 0) files[fd] = ACK_FILE;
    if (name && fstat(fd, &after) == 0 && S_ISREG(after.st_mode)) {
      if ((flags & O_CREAT) && !was) {
        note(CREATED, files[fd] = new_file(after.st_ino), 0, name, strlen(name), "", 0);
      } else {
        files[fd] = file_of(after.st_ino);
        if (!files[fd]) note(OPENED, files[fd] = new_file(after.st_ino), 0, name, strlen(name), "", 0);
        if ((flags & O_TRUNC) && before.st_size > 0) note(TRUNCATE, files[fd], 0, "", 0, "", 0);
      }
    }
  }
  pthread_mutex_unlock(&mutex);
  errno = error;
  return fd;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list list; \
    va_start(list, flags); \
    mode = va_arg(list, mode_t); \
    va_end(list); \
  }

int open(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opening(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opening(at, path, flags | O_LARGEFILE, mode); }

static int ours(int fd) { return log_fd >= 0 && fd >= 0 && fd < FDS ? files[fd] : 0; }

int close(int fd) {
  REAL(int, "close", int);
  if (!ours(fd)) return real(fd);
  pthread_mutex_lock(&mutex);
  files[fd] = 0;
  int done = real(fd);
  pthread_mutex_unlock(&mutex);
  return done;
}

static ssize_t write_at(int fd, const void *data, size_t len, off_t offset) {
  REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
  pthread_mutex_lock(&mutex);
  ssize_t done = real(fd, data, len, offset);
  int error = errno;
  if (done > 0) note(WRITE, files[fd], (uint64_t)offset, data, (size_t)done, "", 0);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return done;
}

ssize_t write(int fd, const void *data, size_t len) {
  int file = ours(fd);
  if (!file) return raw_write(fd, data, len);
  pthread_mutex_lock(&mutex);
  off_t offset = 0;
  if (file != ACK_FILE) {
    struct stat now;
    int append = fcntl(fd, F_GETFL) & O_APPEND;
    offset = append && fstat(fd, &now) == 0 ? now.st_size : lseek(fd, 0, SEEK_CUR);
  }
  ssize_t done = raw_write(fd, data, len);
  int error = errno;
  if (done > 0) note(file == ACK_FILE ? ACK : WRITE, file, (uint64_t)offset, data, (size_t)done, "", 0);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return done;
}

#define PWRITE(name, type) \
  ssize_t name(int fd, const void *data, size_t len, type offset) { \
    if (ours(fd)) return write_at(fd, data, len, offset); \
    REAL(ssize_t, #name, int, const void *, size_t, type); \
    return real(fd, data, len, offset); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  // A short write is allowed: the first part that is not empty.
  if (!ours(fd)) return real(fd, parts, count);
  for (int at = 0; at < count; at++)
    if (parts[at].iov_len > 0) return write(fd, parts[at].iov_base, parts[at].iov_len);
  return 0;
}

static int truncating(int fd, off_t len) {
  REAL(int, "ftruncate64", int, off_t);
  if (!ours(fd)) return real(fd, len);
  pthread_mutex_lock(&mutex);
  int done = real(fd, len);
  int error = errno;
  if (done == 0) note(TRUNCATE, files[fd], (uint64_t)len, "", 0, "", 0);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return done;
}
int ftruncate(int fd, off_t len) { return truncating(fd, len); }
int ftruncate64(int fd, off64_t len) { return truncating(fd, len); }

static int syncing(int fd, int (*real)(int)) {
  if (log_fd < 0) return real(fd);
  char link[64], path[PATH_MAX];
  struct stat now;
  const char *name = NULL;
  pthread_mutex_lock(&mutex);
  if (!ours(fd) && fstat(fd, &now) == 0 && S_ISDIR(now.st_mode)) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len > 0) {
      path[len] = 0;
      name = below(path);
    }
  }
  int done, error;
  int late = failed && ours(fd) == failed && !heard[fd];
  if (((name || ours(fd)) && ++syncs == fail_sync) || late) {
    char thread[16] = "";
    prctl(PR_GET_NAME, thread);
    dprintf(2, "recorder: sync %ld fails in thread %s%s\n", syncs, thread, late ? ", as on another descriptor before" : "");
    if (!name) {
      failed = ours(fd);
      heard[fd] = 1;
    }
    done = -1;
    error = EIO;
  } else {
    done = real(fd);
    error = errno;
    if (done == 0 && name) note(SYNC_DIR, 0, 0, name, strlen(name), "", 0);
    else if (done == 0 && ours(fd) > 0) note(SYNC, files[fd], 0, "", 0, "", 0);
  }
  pthread_mutex_unlock(&mutex);
  errno = error;
  return done;
}
int fsync(int fd) { REAL(int, "fsync", int); return syncing(fd, real); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); return syncing(fd, real); }

#define PATH_OP(op, call, at, path) \
  char buffer[2 * PATH_MAX]; \
  pthread_mutex_lock(&mutex); \
  const char *name = log_fd < 0 ? NULL : resolve(at, path, buffer); \
  int done = call; \
  int error = errno; \
  if (done == 0 && name) note(op, 0, 0, name, strlen(name), "", 0); \
  pthread_mutex_unlock(&mutex); \
  errno = error; \
  return done;

int unlink(const char *path) { REAL(int, "unlink", const char *); PATH_OP(UNLINK, real(path), AT_FDCWD, path) }
int rmdir(const char *path) { REAL(int, "rmdir", const char *); PATH_OP(RMDIR, real(path), AT_FDCWD, path) }
int mkdir(const char *path, mode_t mode) { REAL(int, "mkdir", const char *, mode_t); PATH_OP(MKDIR, real(path, mode), AT_FDCWD, path) }
int unlinkat(int at, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  PATH_OP(flags & AT_REMOVEDIR ? RMDIR : UNLINK, real(at, path, flags), at, path)
}

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  char one[2 * PATH_MAX], two[2 * PATH_MAX];
  pthread_mutex_lock(&mutex);
  const char *old = log_fd < 0 ? NULL : resolve(AT_FDCWD, from, one), *new = log_fd < 0 ? NULL : resolve(AT_FDCWD, to, two);
  int done = real(from, to);
  int error = errno;
  if (done == 0 && old && new) note(RENAME, 0, 0, old, strlen(old), new, strlen(new));
  pthread_mutex_unlock(&mutex);
  errno = error;
  return done;
}
