/* SPDX-License-Identifier: MIT */
#include "progress.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SHOW_AFTER_MS 500
#define COUNT_AFTER_MS 2000
#define RATE_OVER_MS 5000 /* the rate is that of the last so many milliseconds */
#define COUNTER_NICE 5    /* a quarter of a busy CPU: at 19 it would hardly end before the copy does */
#define SAMPLES 64
#define BAR_WIDTH 20

struct sample {
    uint64_t at, bytes, files;
};

struct progress {
    struct report *report;
    char *const *sources;
    unsigned source_count;
    uint64_t began;
    struct sample samples[SAMPLES]; /* a ring */
    unsigned sample_count;
    pthread_t counter;
    bool counting, shown;
    atomic_bool end_counting, counted;
    _Atomic uint64_t total_bytes, total_files;
};

/* ---- Counting --------------------------------------------------------------------------------------------------- */

/* Directories yet to be counted, by path: one whose path is too long for the kernel is left out, this is an estimate.
 */
struct stack {
    char **paths;
    size_t count, size;
};

static void push(struct stack *stack, const char *parent, const char *name)
{
    if (stack->count == stack->size) {
        size_t size = max_size(stack->size * 2, 64);
        char **paths = realloc(stack->paths, size * sizeof *paths);
        if (paths == NULL)
            return;
        stack->paths = paths;
        stack->size = size;
    }
    char *path;
    if ((parent == NULL ? asprintf(&path, "%s", name) : asprintf(&path, "%s/%s", parent, name)) >= 0)
        stack->paths[stack->count++] = path;
}

static void count_status(struct progress *progress, const struct stat *status)
{
    tally_add(&progress->total_files, 1);
    if (S_ISREG(status->st_mode))
        tally_add(&progress->total_bytes, (uint64_t)status->st_size);
}

static void count_directory(struct progress *progress, struct stack *stack, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        close_fd(fd);
        return;
    }
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL && !atomic_load(&progress->end_counting)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (S_ISDIR(status.st_mode))
            push(stack, path, entry->d_name);
        else
            count_status(progress, &status);
    }
    closedir(directory);
}

static void *counter_main(void *context)
{
    struct progress *progress = context;
    struct stack stack = {0};
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), COUNTER_NICE); /* of this thread alone */
    for (unsigned i = 0; i < progress->source_count; i++) {
        struct stat status;
        if (fstatat(AT_FDCWD, progress->sources[i], &status, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (S_ISDIR(status.st_mode))
            push(&stack, NULL, progress->sources[i]);
        else
            count_status(progress, &status);
    }
    while (stack.count > 0) {
        char *path = stack.paths[--stack.count];
        if (!atomic_load(&progress->end_counting))
            count_directory(progress, &stack, path);
        free(path);
    }
    free(stack.paths);
    atomic_store(&progress->counted, !atomic_load(&progress->end_counting));
    return NULL;
}

/* ---- Drawing ---------------------------------------------------------------------------------------------------- */

static uint64_t files_done(const struct tally *tally)
{
    return tally_get(&tally->files) + tally_get(&tally->symlinks) + tally_get(&tally->hard_links) +
           tally_get(&tally->specials) + tally_get(&tally->skipped) + tally_get(&tally->removed);
}

/* Per second, over the last few seconds. */
static void rates(struct progress *progress, const struct sample *now, double *ret_bytes, double *ret_files)
{
    const struct sample *oldest = &progress->samples[progress->sample_count % SAMPLES];
    for (unsigned i = 0; i < SAMPLES; i++) {
        const struct sample *sample = &progress->samples[(progress->sample_count + i) % SAMPLES];
        oldest = sample;
        if (sample->at != 0 && now->at - sample->at <= RATE_OVER_MS)
            break;
    }
    double seconds = oldest->at == 0 || now->at <= oldest->at ? 0 : (double)(now->at - oldest->at) / 1000;
    *ret_bytes = seconds > 0 ? (double)(now->bytes - oldest->bytes) / seconds : 0;
    *ret_files = seconds > 0 ? (double)(now->files - oldest->files) / seconds : 0;
    progress->samples[progress->sample_count++ % SAMPLES] = *now;
}

/* A file costs as much as 64 KiB of content, or so: what is left takes as long as that much. */
#define FILE_WEIGHT 65536.0

struct picture {
    char text[512];
    int length;
};

__attribute__((format(printf, 2, 3))) static void add(struct picture *picture, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int room = (int)sizeof picture->text - picture->length;
    int length = vsnprintf(picture->text + picture->length, (size_t)room, format, arguments);
    picture->length += length < room ? length : room - 1;
    va_end(arguments);
}

static void add_bar(struct picture *picture, double done)
{
    int filled = (int)(done * BAR_WIDTH);
    add(picture, "[");
    for (int i = 0; i < BAR_WIDTH; i++)
        add(picture, i < filled ? "#" : "-");
    add(picture, "] %3d %%  ", (int)(done * 100));
}

static void compose(struct progress *progress, struct picture *picture, const struct sample *now)
{
    char size[TEXT_SIZE_MAX], total[TEXT_SIZE_MAX], rate[TEXT_SIZE_MAX];
    double byte_rate, file_rate;
    rates(progress, now, &byte_rate, &file_rate);
    text_format_size(now->bytes, size, sizeof size);
    text_format_size((uint64_t)byte_rate, rate, sizeof rate);
    if (!atomic_load(&progress->counted)) {
        add(picture, "%s, %llu file%s, %s/s, %.0f files/s", size, (unsigned long long)now->files,
            now->files == 1 ? "" : "s", rate, file_rate);
        return;
    }
    uint64_t total_bytes = max_u64(tally_get(&progress->total_bytes), now->bytes);
    uint64_t total_files = max_u64(tally_get(&progress->total_files), now->files);
    double whole = (double)total_bytes + FILE_WEIGHT * (double)total_files;
    double done = (double)now->bytes + FILE_WEIGHT * (double)now->files;
    double speed = byte_rate + FILE_WEIGHT * file_rate;
    text_format_size(total_bytes, total, sizeof total);
    add_bar(picture, whole > 0 ? done / whole : 0);
    add(picture, "%s of %s, %llu of %llu files, %s/s", size, total, (unsigned long long)now->files,
        (unsigned long long)total_files, rate);
    if (speed > 0) {
        char left[TEXT_SIZE_MAX];
        text_format_duration((uint64_t)((whole - done) / speed + 1) * 1000, left, sizeof left);
        add(picture, ", %s left", left);
    }
}

static unsigned terminal_width(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void progress_draw(struct progress *progress)
{
    const struct tally *tally = &progress->report->tally;
    struct sample now = {
        .at = clock_ms(CLOCK_MONOTONIC), .bytes = tally_get(&tally->bytes), .files = files_done(tally)};
    uint64_t elapsed = now.at - progress->began;
    if (elapsed >= COUNT_AFTER_MS && !progress->counting)
        progress->counting = pthread_create(&progress->counter, NULL, counter_main, progress) == 0;
    struct picture picture = {.length = 0};
    compose(progress, &picture, &now);
    if (elapsed < SHOW_AFTER_MS)
        return;
    unsigned width = terminal_width();
    if ((unsigned)picture.length >= width)
        picture.text[width - 1] = '\0';
    pthread_mutex_lock(&progress->report->lock);
    fprintf(stderr, "\r%s\033[K", picture.text);
    fflush(stderr);
    progress->report->progress_shown = progress->shown = true;
    pthread_mutex_unlock(&progress->report->lock);
}

int progress_new(struct report *report, char *const *sources, unsigned count, struct progress **ret_progress)
{
    struct progress *progress = calloc(1, sizeof *progress);
    if (progress == NULL)
        return -ENOMEM;
    progress->report = report;
    progress->sources = sources;
    progress->source_count = count;
    progress->began = clock_ms(CLOCK_MONOTONIC);
    *ret_progress = progress;
    return 0;
}

bool progress_was_shown(const struct progress *progress)
{
    return progress->shown;
}

void progress_free(struct progress *progress)
{
    if (progress == NULL)
        return;
    atomic_store(&progress->end_counting, true);
    if (progress->counting)
        pthread_join(progress->counter, NULL);
    pthread_mutex_lock(&progress->report->lock);
    if (progress->report->progress_shown)
        fputs("\r\033[K", stderr);
    progress->report->progress_shown = false;
    pthread_mutex_unlock(&progress->report->lock);
    free(progress);
}
