/*
 * The mapping file on disk: replaced atomically,
 * and never put in the place of something that is not a mapping.
 */
#include "mapping_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* How often a file that comes and goes is looked at anew before the caller waits. */
#define ATTEMPTS 8

int mapping_file_init(struct mapping_file *file, const char *path) {
    const char *slash = strrchr(path, '/');
    int directory_length = slash == NULL ? 0 : (int)(slash - path) + 1;
    int length;

    *file = (struct mapping_file){.path = path};
    length = snprintf(file->temporary, sizeof(file->temporary), "%.*s.%s.vdpad", directory_length, path,
                      path + directory_length);
    return length < 0 || (size_t)length >= sizeof(file->temporary) ? -ENAMETOOLONG : 0;
}

static int read_all(int fd, char *data, size_t capacity, size_t *size) {
    *size = 0;
    while (*size < capacity) {
        ssize_t got = read(fd, data + *size, capacity - *size);

        if (got == 0)
            return 0;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0)
            *size += (size_t)got;
    }
    return 0;
}

int mapping_file_read(const char *path, struct mapping *mapping, char *reason, size_t reason_size) {
    /*
     * Processes that may write to the directory are not trusted: no link is followed, and to open a fifo
     * does not wait for its writer.
     */
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    const size_t capacity = MAPPING_MAX_BYTES + 1;
    struct stat status;
    char *data = NULL;
    size_t size = 0;
    int error = 0;

    *mapping = (struct mapping){0};
    if (fd < 0 && (errno == ELOOP || errno == ENXIO))
        error = -EINVAL;
    else if (fd < 0 || fstat(fd, &status) != 0)
        error = -errno;
    else if (!S_ISREG(status.st_mode) || status.st_nlink != 1)
        error = -EINVAL;
    else if ((data = malloc(capacity)) == NULL)
        error = -ENOMEM;
    else
        error = read_all(fd, data, capacity, &size);
    if (error == 0)
        error = mapping_decode(data, size, mapping, reason, reason_size);
    else if (error == -EINVAL)
        snprintf(reason, reason_size, "is not a regular file with one link");
    else
        snprintf(reason, reason_size, "cannot be read: %s", strerror(-error));
    free(data);
    if (fd >= 0)
        close(fd);
    return error;
}

static int write_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t put = write(fd, data, size);

        if (put < 0 && errno != EINTR)
            return -errno;
        if (put > 0) {
            data += put;
            size -= (size_t)put;
        }
    }
    return 0;
}

/* Takes away what has the temporary name; a directory only if it is empty. */
static int clear_temporary(const struct mapping_file *file) {
    if (unlink(file->temporary) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR)
        return -errno;
    return rmdir(file->temporary) == 0 ? 0 : -errno;
}

/* Writes the temporary file and notes which one it is. */
static int write_temporary(const struct mapping_file *file, const char *text, struct stat *status) {
    int error;
    int fd;

    /* One left by a process that was killed: the name is fixed, so that these do not pile up. */
    error = clear_temporary(file);
    if (error != 0)
        return error;
    fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    /* Readable by the agent, whatever the umask. */
    if (fchmod(fd, 0644) != 0)
        error = -errno;
    if (error == 0)
        error = write_all(fd, text, strlen(text));
    if (error == 0 && fstat(fd, status) != 0)
        error = -errno;
    if (close(fd) != 0 && error == 0)
        error = -errno;
    if (error != 0)
        unlink(file->temporary);
    return error;
}

/*
 * Whether `path` is the file that was written, as it was written. The inode alone does not say so: a file
 * system gives the number of a removed file to the next one.
 */
static bool is_file(const char *path, const struct stat *written) {
    struct stat status;

    return lstat(path, &status) == 0 && status.st_dev == written->st_dev &&
           status.st_ino == written->st_ino && status.st_mode == written->st_mode &&
           status.st_nlink == written->st_nlink && status.st_size == written->st_size &&
           status.st_mtim.tv_sec == written->st_mtim.tv_sec &&
           status.st_mtim.tv_nsec == written->st_mtim.tv_nsec;
}

static int move(const struct mapping_file *file, unsigned int flags) {
    return renameat2(AT_FDCWD, file->temporary, AT_FDCWD, file->path, flags) == 0 ? 0 : -errno;
}

/* Whether what is there may be replaced: nothing, or a mapping. */
static int look(const struct mapping_file *file, char *reason, size_t size) {
    struct mapping old;
    int error = mapping_file_read(file->path, &old, reason, size);

    mapping_free(&old);
    if (error == -EINVAL)
        return -EEXIST;
    return error == -ENOENT ? 0 : error;
}

/* Forgets what is under the temporary name, which is to be kept no more. */
static int drop(struct mapping_file *file) {
    file->held = false;
    return unlink(file->temporary) == 0 || errno == ENOENT ? 0 : -errno;
}

/*
 * After what is held was swapped with what stood in its place: 0 if that need not be kept, -EEXIST if it is a
 * still newer one, which is held now; else why that cannot be said.
 */
static int judge(const struct mapping_file *file) {
    struct mapping there;
    char detail[256];
    int error;

    if (is_file(file->temporary, &file->ours))
        return 0;
    error = mapping_file_read(file->temporary, &there, detail, sizeof(detail));
    mapping_free(&there);
    return error == -EINVAL ? -EEXIST : error;
}

/* The same where the file system knows no swap: what is not a mapping is newer than what is held, and stays.
 */
static int give_back_plainly(struct mapping_file *file) {
    char detail[256];
    int error = look(file, detail, sizeof(detail));

    if (error == 0)
        error = move(file, 0);
    if (error == -EEXIST)
        return drop(file);
    file->held = error != 0;
    return error;
}

/*
 * What was taken from `path` and is not a mapping goes back. A still newer one that came there meanwhile
 * replaces it, as it would have without us. While this fails, nothing is lost: what is held stays held.
 */
static int give_back(struct mapping_file *file) {
    int error = -EEXIST;

    for (int i = 0; i < ATTEMPTS && (error == -ENOENT || error == -EEXIST); i++) {
        struct stat status;

        error = move(file, RENAME_NOREPLACE);
        if (error == 0 || (error == -ENOENT && lstat(file->temporary, &status) != 0 && errno == ENOENT)) {
            file->held = false;
            return 0;
        }
        if (error == -EINVAL || error == -ENOSYS)
            return give_back_plainly(file);
        if (error == -EEXIST)
            error = move(file, RENAME_EXCHANGE);
        if (error != 0)
            continue;
        error = judge(file);
        if (error == -EEXIST)
            error = move(file, RENAME_EXCHANGE);
        if (error == 0)
            return drop(file);
    }
    return error;
}

/* Swaps the new file with what is there, and swaps back if that is not a mapping. */
static int exchange(struct mapping_file *file, char *reason, size_t size) {
    struct mapping old;
    int error = move(file, RENAME_EXCHANGE);

    if (error != 0)
        return error;
    file->held = true;
    error = mapping_file_read(file->temporary, &old, reason, size);
    mapping_free(&old);
    if (error == 0)
        return drop(file);
    error = give_back(file);
    return error == 0 ? -EEXIST : error;
}

/*
 * Whether a process that was killed left something under the temporary name that is not ours: all that we
 * write there begins with a bracket. What is no file, or has other names, is nothing to be kept.
 */
static bool left_by_another(const char *path) {
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    char text[64];
    size_t size = 0;
    size_t at = 0;
    bool kept = fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
                read_all(fd, text, sizeof(text), &size) == 0;

    if (fd >= 0)
        close(fd);
    while (kept && at < size && strchr(" \t\r\n", text[at]) != NULL && text[at] != '\0')
        at++;
    return kept && at < size && text[at] != '[';
}

/* What came since look() is not lost either, unless the file system has no such renames. */
static int put_in_place(struct mapping_file *file, char *reason, size_t size) {
    int error = -ENOENT;

    for (int i = 0; i < ATTEMPTS && !file->plain_rename; i++) {
        error = move(file, RENAME_NOREPLACE);
        if (error == -EEXIST)
            error = exchange(file, reason, size);
        if (file->held)
            return error;
        if (error == -EINVAL || error == -ENOSYS)
            file->plain_rename = true;
        else if (error != -ENOENT)
            return error;
    }
    return file->plain_rename ? move(file, 0) : error;
}

int mapping_file_replace(struct mapping_file *file, const struct mapping *mapping, char *reason,
                         size_t size) {
    char *text = mapping_encode(mapping);
    char detail[256] = "";
    int error = text == NULL ? -ENOMEM : 0;

    if (!file->looked)
        file->held = left_by_another(file->temporary);
    file->looked = true;
    if (error == 0 && file->held)
        error = give_back(file);
    if (error == 0)
        error = look(file, detail, sizeof(detail));
    if (error == 0)
        error = write_temporary(file, text, &file->ours);
    free(text);
    if (error == 0) {
        error = put_in_place(file, detail, sizeof(detail));
        if (error != 0 && is_file(file->temporary, &file->ours))
            drop(file);
    }
    if (error == 0) {
        file->written = true;
        file->last = file->ours;
    } else if (file->held) {
        snprintf(reason, size, "what was put there is kept as %s, and cannot go back: %s", file->temporary,
                 strerror(-error));
    } else if (error == -EEXIST) {
        snprintf(reason, size, "what is there is not a mapping (%s): take it away", detail);
    } else if (error == -ENOTEMPTY) {
        snprintf(reason, size, "%s, where it is written first, is a directory: remove it", file->temporary);
    } else {
        snprintf(reason, size, "%s%s", strerror(-error),
                 error == -EFBIG ? ": raise the limit of file size (ulimit -f)" : "");
    }
    return error;
}

void mapping_file_remove(struct mapping_file *file) {
    int error = 0;

    if (!file->written || !is_file(file->path, &file->last))
        return;
    /*
     * Aside first, then look again: what was put there in the meantime goes back, unless a newer
     * file is there.
     */
    if (rename(file->path, file->temporary) != 0)
        return;
    if (!is_file(file->temporary, &file->last)) {
        error = move(file, RENAME_NOREPLACE);
        if (error == -EINVAL || error == -ENOSYS)
            error = move(file, 0);
    }
    if (error == 0 || error == -EEXIST)
        clear_temporary(file);
    file->written = false;
}
