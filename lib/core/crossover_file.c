/* SPDX-License-Identifier: MIT
 *
 * What was learned, kept across runs in a file of the user's cache. Its name and its first lines say on which kernel
 * and CPU it was measured; each record names its device by driver and features. It is read as if a stranger had written
 * it: anything out of place, and the whole file counts for nothing.
 *
 *     sluice crossovers 1
 *     kernel 6.18.0
 *     cpu AMD EPYC 7B13
 *     splice tcp tcp loopback lsc- 8192 2:64:1234567 3:20:654321
 *
 * A record: route, source, sink, driver and features of the device, crossover, and by size class the samples and their
 * mean in ns per MiB. "-" stands for none, "never" for a crossover that there is not.
 */
#include "crossover.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define FILE_MAX (128u << 10)
#define MIB 1048576.0f

struct machine {
    char kernel[65], cpu[96];
};

/* Into one line of printable characters. */
static void set_plain(char *to, size_t size, const char *from, size_t length)
{
    size_t i = 0;
    for (; i < length && i + 1 < size; i++)
        to[i] = from[i] > ' ' && from[i] < 127 ? from[i] : ' ';
    while (i > 0 && to[i - 1] == ' ')
        i--;
    to[i] = '\0';
}

/* size - 1 bytes at most, until the end; terminated. Returns their number or a negative errno. */
static ssize_t read_all(int fd, char *buffer, size_t size)
{
    size_t used = 0;
    while (used + 1 < size) {
        ssize_t result = sys.read(fd, buffer + used, size - 1 - used);
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0)
            return -errno;
        if (result == 0)
            break;
        used += (size_t)result;
    }
    buffer[used] = '\0';
    return (ssize_t)used;
}

static void ask_machine(struct machine *machine)
{
    struct utsname name;
    char text[4096] = "";
    uname(&name);
    set_plain(machine->kernel, sizeof machine->kernel, name.release, strlen(name.release));
    set_plain(machine->cpu, sizeof machine->cpu, name.machine, strlen(name.machine));
    int fd = sys.open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (read_all(fd, text, sizeof text) > 0) {
        const char *model = strstr(text, "model name"); /* x86; elsewhere the architecture has to do */
        const char *value = model != NULL ? strchr(model, ':') : NULL;
        if (value != NULL) {
            value += 1 + strspn(value + 1, " \t");
            set_plain(machine->cpu, sizeof machine->cpu, value, strcspn(value, "\n"));
        }
    }
    sys.close(fd);
}

/* ---- Where ---------------------------------------------------------------------------------------------------- */

/* $XDG_CACHE_HOME/sluice or ~/.cache/sluice, without environment for programs with more rights than their caller. */
static int cache_directory(char *path, size_t size)
{
    const char *cache = secure_getenv("XDG_CACHE_HOME"), *home = secure_getenv("HOME");
    int length;
    if (cache != NULL && cache[0] == '/') /* a relative path is to be ignored (XDG Base Directory Specification) */
        length = snprintf(path, size, "%s/sluice", cache);
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, size, "%s/.cache/sluice", home);
    else
        return -ENOENT;
    return length < (int)size ? 0 : -ENAMETOOLONG;
}

static uint64_t hash(uint64_t seed, const char *text)
{
    for (; *text != '\0'; text++)
        seed = (seed ^ (unsigned char)*text) * UINT64_C(1099511628211);
    return seed;
}

static int default_path(const struct machine *machine, char *path, size_t size)
{
    int result = cache_directory(path, size);
    if (result < 0)
        return result;
    uint64_t key = hash(hash(UINT64_C(14695981039346656037), machine->kernel), machine->cpu);
    size_t used = strlen(path);
    int length = snprintf(path + used, size - used, "/crossovers-%016llx", (unsigned long long)key);
    return length < (int)(size - used) ? 0 : -ENAMETOOLONG;
}

/* ---- Reading -------------------------------------------------------------------------------------------------- */

static int kind_by_name(const char *name)
{
    for (int kind = 0; kind < SLUICE_END_KIND_COUNT; kind++) {
        const char *known = sluice_end_kind_name((enum sluice_end_kind)kind);
        if (strncmp(known, name, strcspn(known, " ")) == 0 && strlen(name) == strcspn(known, " "))
            return kind; /* "block" for a block device */
    }
    return -EINVAL;
}

static bool parse_number(const char *text, uint64_t max, uint64_t *ret_number)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || number > max)
        return false;
    *ret_number = number;
    return true;
}

/* "2:64:1234567" */
static bool parse_cell(char *text, struct crossover_record *record)
{
    uint64_t class, samples, ns;
    char *rest, *number = strtok_r(text, ":", &rest);
    if (number == NULL || !parse_number(number, CROSSOVER_CLASSES - 1, &class))
        return false;
    number = strtok_r(NULL, ":", &rest);
    if (number == NULL || !parse_number(number, CROSSOVER_WINDOW, &samples))
        return false;
    number = strtok_r(NULL, "", &rest);
    if (number == NULL || !parse_number(number, UINT32_MAX, &ns))
        return false;
    record->cells[class] = (struct crossover_cell){.ns_per_byte = (float)ns / MIB, .samples = (uint32_t)samples};
    return true;
}

static bool parse_device(const char *driver, const char *features, struct crossover_device *device)
{
    if (strlen(driver) >= sizeof device->driver || strlen(features) != 4 || strspn(features, "lsct-") != 4)
        return false;
    if (strcmp(driver, "-") != 0)
        memcpy(device->driver, driver, strlen(driver));
    device->loopback = features[0] == 'l';
    device->scatter_gather = features[1] == 's';
    device->checksum = features[2] == 'c';
    device->segmentation = features[3] == 't';
    return true;
}

/* Returns 0, or -EBADMSG. */
static int parse_record(char *line, struct crossover_record *ret_record)
{
    struct crossover_record record = {0};
    char *words[6], *rest;
    for (int i = 0; i < 6; i++) {
        words[i] = strtok_r(i == 0 ? line : NULL, " ", &rest);
        if (words[i] == NULL)
            return -EBADMSG;
    }
    int route = sluice_route_by_name(words[0]), source = kind_by_name(words[1]), sink = kind_by_name(words[2]);
    if (route < 0 || source < 0 || sink < 0 || !parse_device(words[3], words[4], &record.device))
        return -EBADMSG;
    record.route = (enum sluice_route)route;
    record.source = (enum sluice_end_kind)source;
    record.sink = (enum sluice_end_kind)sink;
    if (strcmp(words[5], "never") == 0)
        record.from = CROSSOVER_NEVER;
    else if (strcmp(words[5], "-") != 0 && !parse_number(words[5], INT64_MAX, &record.from))
        return -EBADMSG;
    for (char *cell; (cell = strtok_r(NULL, " ", &rest)) != NULL;)
        if (!parse_cell(cell, &record))
            return -EBADMSG;
    *ret_record = record;
    return 0;
}

/* The next line, without its end; NULL: there is none, or the text does not end with one. */
static char *next_line(char **text)
{
    char *line = *text, *end = strchr(line, '\n');
    if (end == NULL)
        return NULL;
    *end = '\0';
    *text = end + 1;
    return line;
}

static int parse_head(char **text, const struct machine *machine, const char **ret_reason)
{
    char *title = next_line(text), *kernel = title != NULL ? next_line(text) : NULL;
    char *cpu = kernel != NULL ? next_line(text) : NULL;
    *ret_reason = "it is no file of crossovers that this version wrote";
    if (cpu == NULL || strcmp(title, "sluice crossovers 1") != 0 || strncmp(kernel, "kernel ", 7) != 0 ||
        strncmp(cpu, "cpu ", 4) != 0)
        return -EBADMSG;
    *ret_reason = "it was measured on another kernel or CPU";
    return strcmp(kernel + 7, machine->kernel) == 0 && strcmp(cpu + 4, machine->cpu) == 0 ? 0 : -ESTALE;
}

/* Twice: first is everything in order, then take it. */
static int parse(const char *text, const struct machine *machine, const char **ret_reason)
{
    char *copy = sys.allocate(1, FILE_MAX);
    int result = copy != NULL ? 0 : -ENOMEM;
    for (int pass = 0; pass < 2 && result == 0; pass++) {
        char *rest = copy, *line;
        memcpy(copy, text, strlen(text) + 1);
        result = parse_head(&rest, machine, ret_reason);
        while (result == 0 && (line = next_line(&rest)) != NULL) {
            struct crossover_record record;
            *ret_reason = "a line of it makes no sense";
            result = parse_record(line, &record);
            if (result == 0)
                result = pass == 0 ? (crossover_is_sensible(&record) ? 0 : -EBADMSG) : crossover_restore(&record);
        }
        if (result == 0 && *rest != '\0')
            result = -EBADMSG; /* cut off */
    }
    free(copy);
    return result == -ENOSPC ? 0 : result; /* more devices than there is room for: those come first that came first */
}

/* Whoever could write the file could slow us down with it, no more; all the same only our own is believed. */
static int read_own(int fd, char *text, const char **ret_reason)
{
    struct stat status;
    if (sys.fstat(fd, &status) < 0)
        return -errno;
    *ret_reason = "it is not a file of this user's";
    if (!S_ISREG(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & S_IWOTH) != 0)
        return -EPERM;
    *ret_reason = "it is too large";
    if (status.st_size >= FILE_MAX)
        return -EFBIG;
    *ret_reason = "it cannot be read";
    ssize_t size = read_all(fd, text, FILE_MAX);
    if (size < 0)
        return (int)size;
    *ret_reason = "it is not text";
    return strlen(text) == (size_t)size ? 0 : -EBADMSG;
}

int sluice_crossovers_load(const char *path, const char **ret_reason)
{
    struct machine machine;
    char own[PATH_MAX];
    const char *reason = "there is no cache directory: neither XDG_CACHE_HOME nor HOME is set";
    ask_machine(&machine);
    int result = path == NULL ? default_path(&machine, own, sizeof own) : 0;
    if (result == 0) {
        reason = "it cannot be opened";
        int fd = sys.open(path != NULL ? path : own, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
        result = fd < 0 ? -errno : 0;
        if (result == -ENOENT)
            reason = "there is none yet";
        char *text = result == 0 ? sys.allocate(1, FILE_MAX) : NULL;
        if (result == 0)
            result = text != NULL ? read_own(fd, text, &reason) : -ENOMEM;
        if (result == 0)
            result = parse(text, &machine, &reason);
        free(text);
        if (fd >= 0)
            sys.close(fd);
    }
    if (result < 0 && ret_reason != NULL)
        *ret_reason = result == -ENOMEM ? "there is no memory" : reason;
    return result;
}

/* ---- Writing -------------------------------------------------------------------------------------------------- */

struct text {
    char *data;
    size_t used, size;
    bool full;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text->data + text->used, text->size - text->used, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= text->size - text->used)
        text->full = true;
    else
        text->used += (size_t)length;
}

static void add_record(void *context, const struct crossover_record *record)
{
    struct text *text = context;
    const struct crossover_device *device = &record->device;
    size_t before = text->used;
    char driver[sizeof device->driver];
    set_plain(driver, sizeof driver, device->driver, strnlen(device->driver, sizeof device->driver));
    if (strchr(driver, ' ') != NULL)
        return; /* no driver's name has one; it would be two words */
    const char *source = sluice_end_kind_name(record->source), *sink = sluice_end_kind_name(record->sink);
    add(text, "%s %.*s %.*s %s %c%c%c%c ", sluice_route_name(record->route), (int)strcspn(source, " "), source,
        (int)strcspn(sink, " "), sink, driver[0] != '\0' ? driver : "-", device->loopback ? 'l' : '-',
        device->scatter_gather ? 's' : '-', device->checksum ? 'c' : '-', device->segmentation ? 't' : '-');
    if (record->from == CROSSOVER_NEVER)
        add(text, "never");
    else if (record->from != 0)
        add(text, "%llu", (unsigned long long)record->from);
    else
        add(text, "-");
    for (unsigned class = 0; class < CROSSOVER_CLASSES; class ++) {
        const struct crossover_cell *cell = &record->cells[class];
        if (cell->samples > 0)
            add(text, " %u:%u:%.0f", class, cell->samples, (double)(cell->ns_per_byte * MIB));
    }
    add(text, "\n");
    if (text->full)
        text->used = before; /* whole lines only */
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        struct iovec piece = {.iov_base = (void *)data, .iov_len = size};
        ssize_t result = sys.writev(fd, &piece, 1);
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0)
            return -errno;
        data += result;
        size -= (size_t)result;
    }
    return 0;
}

/* Under another name first, so that nobody reads half a file. */
static int replace_file(const char *path, const char *data, size_t size)
{
    char temporary[PATH_MAX + 32];
    snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = sys.open(temporary, flags, 0600);
    if (fd < 0 && errno == EEXIST && sys.unlink(temporary) == 0) /* of a process of this number that was killed */
        fd = sys.open(temporary, flags, 0600);
    if (fd < 0)
        return -errno;
    int result = write_all(fd, data, size);
    if (sys.close(fd) < 0 && result == 0 && errno != EINTR)
        result = -errno; /* a network file system says here that the disk is full */
    if (result == 0 && sys.rename(temporary, path) < 0)
        result = -errno;
    if (result < 0)
        sys.unlink(temporary);
    return result;
}

static int make_one(const char *path)
{
    return sys.mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
}

/* ~/.cache/sluice, and ~/.cache if need be. Nothing is written into another user's (HOME under sudo). */
static int make_directory(void)
{
    char path[PATH_MAX];
    struct stat status;
    int result = cache_directory(path, sizeof path);
    if (result < 0)
        return result;
    char *last = strrchr(path, '/');
    result = make_one(path);
    if (result == -ENOENT) {
        *last = '\0';
        result = make_one(path);
        *last = '/';
        if (result == 0)
            result = make_one(path);
    }
    if (result < 0)
        return result;
    int fd = sys.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    result = sys.fstat(fd, &status) < 0 ? -errno : 0;
    if (result == 0 && status.st_uid != geteuid())
        result = -EPERM;
    sys.close(fd);
    return result;
}

int sluice_crossovers_save(const char *path)
{
    struct machine machine;
    char own[PATH_MAX];
    if (crossover_entered() == 0)
        return 0;
    ask_machine(&machine);
    int result = path == NULL ? default_path(&machine, own, sizeof own) : 0;
    if (result == 0 && path == NULL)
        result = make_directory();
    if (result < 0)
        return result;
    struct text text = {.data = sys.allocate(1, FILE_MAX), .size = FILE_MAX};
    if (text.data == NULL)
        return -ENOMEM;
    add(&text, "sluice crossovers 1\nkernel %s\ncpu %s\n", machine.kernel, machine.cpu);
    crossover_each(add_record, &text);
    result = replace_file(path != NULL ? path : own, text.data, text.used);
    free(text.data);
    return result < 0 ? result : 1;
}

/* ---- Showing ---------------------------------------------------------------------------------------------------- */

struct listing {
    sluice_crossover_fn *visit;
    void *context;
};

static void show(void *context, const struct crossover_record *record)
{
    const struct listing *listing = context;
    if (record->route == SLUICE_ROUTE_COPY || (record->from == 0 && !record->closed))
        return;
    struct sluice_crossover crossover = {
        .route = record->route,
        .source = record->source,
        .sink = record->sink,
        .device = {.known = true,
                   .scatter_gather = record->device.scatter_gather,
                   .checksum = record->device.checksum,
                   .segmentation = record->device.segmentation,
                   .loopback = record->device.loopback},
        .from = record->closed ? SLUICE_NEVER_PAYS : record->from,
        .closed = record->closed,
    };
    memcpy(crossover.device.driver, record->device.driver, sizeof crossover.device.driver);
    for (unsigned class = 0; class < CROSSOVER_CLASSES; class ++)
        crossover.samples += record->cells[class].samples;
    listing->visit(listing->context, &crossover);
}

void sluice_crossovers_each(sluice_crossover_fn *visit, void *context)
{
    struct listing listing = {.visit = visit, .context = context};
    crossover_each(show, &listing);
}
