/* SPDX-License-Identifier: MIT */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "findings.h"
#include "format.h"
#include "report.h"
#include "table.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>

enum order { BY_BYTES, BY_RATE, BY_COPIES, ORDER_COUNT };

static const char *const order_names[ORDER_COUNT] = {"bytes", "rate", "copies"};

/* A row of the screen before, for rates. */
struct before {
    struct trace_flow_key key;
    uint64_t bytes;
    uint64_t rate; /* kept while no time goes by between two drawings */
    bool rate_known;
};

struct screen {
    int fd;
    struct termios saved;
    bool toggle_threads, paused;
    enum order order;
    struct before *before; /* sorted by key */
    size_t before_count;
    uint64_t before_ns; /* when, on the account's clock */
    bool drawn;
};

/* Restored by exit() too, should the caller not come to screen_close(). */
static struct screen *open_screen;

#define ENTER "\033[?1049h\033[?25l\033[2J" /* alternate screen, no cursor, empty */
#define LEAVE "\033[0m\033[?25h\033[?1049l"

static void put(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, text, length);
        if (written < 0 && errno == EAGAIN) { /* somebody else made the terminal non-blocking */
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            if (poll(&wait, 1, 1000) <= 0)
                return;
            continue;
        }
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return;
        text += written;
        length -= (size_t)written;
    }
}

static void restore(void)
{
    if (open_screen == NULL)
        return;
    put(open_screen->fd, LEAVE, strlen(LEAVE));
    tcsetattr(open_screen->fd, TCSAFLUSH, &open_screen->saved);
    open_screen = NULL;
}

int screen_open(int fd, struct screen **ret_screen)
{
    static bool registered;
    const char *terminal = getenv("TERM");
    if (!isatty(fd) || terminal == NULL || terminal[0] == '\0' || strcmp(terminal, "dumb") == 0 || open_screen != NULL)
        return -ENOTTY;
    CLEANUP_FREE struct screen *screen = calloc(1, sizeof *screen);
    if (screen == NULL)
        return -ENOMEM;
    screen->fd = fd;
    if (tcgetattr(fd, &screen->saved) != 0)
        return -errno;
    if (!registered && atexit(restore) != 0)
        return -ENOMEM;
    registered = true;
    struct termios raw = screen->saved;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 0; /* read() returns at once; the descriptor itself stays as the shell knows it */
    raw.c_cc[VTIME] = 0;
    raw.c_cc[VSUSP] = _POSIX_VDISABLE; /* stopping here would leave the shell with our screen */
    if (tcsetattr(fd, TCSAFLUSH, &raw) != 0)
        return -errno;
    put(fd, ENTER, strlen(ENTER));
    open_screen = screen;
    *ret_screen = TAKE_POINTER(screen);
    return 0;
}

void screen_close(struct screen *screen)
{
    if (screen == NULL)
        return;
    restore();
    free(screen->before);
    free(screen);
}

/* ---- Rates ---- */

static int compare_keys(const void *a, const void *b)
{
    return memcmp(&((const struct before *)a)->key, &((const struct before *)b)->key, sizeof(struct trace_flow_key));
}

/* Fill rows[], and remember them for the next time. */
static void work_out_rates(struct screen *screen, const struct account_row *rows, size_t count, uint64_t now_ns,
                           struct table_row *table_rows)
{
    struct before *now = calloc(count + 1, sizeof *now);
    uint64_t passed = now_ns - screen->before_ns;
    for (size_t i = 0; i < count; i++) {
        struct before entry = {.key = rows[i].key, .bytes = rows[i].value.bytes};
        const struct before *before = NULL;
        if (screen->before_count > 0)
            before = bsearch(&entry, screen->before, screen->before_count, sizeof entry, compare_keys);
        if (before != NULL && passed == 0) {
            entry.rate = before->rate;
            entry.rate_known = before->rate_known;
        } else if (screen->drawn && passed > 0) {
            /* A row that was not there moved all its bytes since. */
            uint64_t moved = entry.bytes - (before != NULL ? min_u64(before->bytes, entry.bytes) : 0);
            entry.rate = (uint64_t)((double)moved * 1e9 / (double)passed);
            entry.rate_known = true;
        }
        table_rows[i] = (struct table_row){.row = &rows[i], .rate = entry.rate, .rate_known = entry.rate_known};
        if (now != NULL)
            now[i] = entry;
    }
    if (now == NULL)
        return;
    qsort(now, count, sizeof *now, compare_keys);
    free(screen->before);
    screen->before = now;
    screen->before_count = count;
    screen->before_ns = now_ns;
    screen->drawn = true;
}

static int more_rate(const void *a, const void *b)
{
    const struct table_row *first = a, *second = b;
    if (first->rate != second->rate)
        return first->rate < second->rate ? 1 : -1;
    return first->row->value.bytes < second->row->value.bytes   ? 1
           : first->row->value.bytes > second->row->value.bytes ? -1
                                                                : 0;
}

static int more_copies(const void *a, const void *b)
{
    const struct account_row *first = ((const struct table_row *)a)->row, *second = ((const struct table_row *)b)->row;
    return first->copy_bytes < second->copy_bytes ? 1 : first->copy_bytes > second->copy_bytes ? -1 : 0;
}

/* ---- Drawing ---- */

/* A frame is text first; then its lines are clipped to the window and sent in one piece, each over the old one, so that
 * nothing flickers. */
static void send_frame(const struct screen *screen, const char *text, unsigned columns, unsigned rows)
{
    char *frame = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&frame, &length);
    if (stream == NULL)
        return;
    fputs("\033[?2026h\033[H", stream); /* terminals that know it draw all at once */
    for (unsigned row = 0; row < rows; row++) {
        size_t column = 0;
        while (*text != '\0' && *text != '\n') {
            char character[8] = "";
            if (*text == '\033') { /* colours: until the m */
                size_t end = strcspn(text, "m");
                end += text[end] != '\0';
                fprintf(stream, "%.*s", (int)end, text);
                text += end;
                continue;
            }
            unsigned size = 1;
            while (size < 4 && ((unsigned char)text[size] & 0xc0) == 0x80)
                size++;
            memcpy(character, text, size);
            column += format_columns(character);
            if (column <= columns)
                fputs(character, stream);
            text += size;
        }
        fputs("\033[0m\033[K", stream);
        if (row + 1 < rows)
            fputs("\r\n", stream);
        text += *text == '\n';
    }
    fputs("\033[J\033[?2026l", stream);
    if (fclose(stream) == 0)
        put(screen->fd, frame, length);
    free(frame);
}

static void window_of(const struct screen *screen, unsigned *ret_columns, unsigned *ret_rows)
{
    struct winsize window;
    bool known = ioctl(screen->fd, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 && window.ws_row > 0;
    *ret_columns = known ? window.ws_col : 80;
    *ret_rows = known ? window.ws_row : 24;
}

static void draw_bar(FILE *stream, uint64_t kernel, uint64_t user, uint64_t whole, unsigned width, bool colour,
                     const struct format_symbols *symbols)
{
    char share[FORMAT_FIGURE_MAX], in_kernel[FORMAT_FIGURE_MAX], in_user[FORMAT_FIGURE_MAX];
    unsigned full = whole > 0 ? (unsigned)((double)(kernel + user) * width / (double)whole + 0.5) : 0;
    fputs("CPU spent copying  ", stream);
    if (whole == 0) {
        fputs("unknown (no samples)\n", stream);
        return;
    }
    fputs(colour ? "\033[31m" : "", stream);
    for (unsigned i = 0; i < width; i++) {
        if (i == full && colour)
            fputs("\033[0m\033[2m", stream);
        fputs(i < full ? symbols->bar_full : symbols->bar_empty, stream);
    }
    fprintf(stream, "%s %s  (kernel %s, user space %s)\n", colour ? "\033[0m" : "",
            format_share(kernel + user, whole, share), format_share(kernel, whole, in_kernel),
            format_share(user, whole, in_user));
}

/* How many lines text has. */
static unsigned lines_of(const char *text)
{
    unsigned lines = 0;
    for (; *text != '\0'; text++)
        lines += *text == '\n';
    return lines;
}

/* The findings as they fit: at most so many lines. */
static char *findings_text(struct account *account, unsigned columns, unsigned most,
                           const struct format_symbols *symbols)
{
    struct finding findings[FINDINGS_MAX];
    size_t count = findings_find(account, findings), length = 0;
    char *all = NULL, first[16], printable[2048];
    FILE *stream = open_memstream(&all, &length);
    if (stream == NULL)
        return NULL;
    snprintf(first, sizeof first, "%s ", symbols->bullet);
    for (size_t i = 0; i < count; i++) {
        long before = ftell(stream);
        char both[sizeof findings[0].what + sizeof findings[0].advice + 8];
        snprintf(both, sizeof both, "%s %s", findings[i].what, findings[i].advice);
        format_wrap(stream, first, format_printable(both, symbols, printable, sizeof printable), columns);
        if (fflush(stream) != 0 || lines_of(all) > most) {
            fseek(stream, before, SEEK_SET); /* half a finding says nothing */
            break;
        }
    }
    if (fclose(stream) == 0)
        return all;
    free(all);
    return NULL;
}

void screen_draw(struct screen *screen, struct account *account, const struct report_options *options)
{
    if (screen->paused)
        return;
    const struct format_symbols *symbols = format_symbols();
    unsigned columns, height;
    window_of(screen, &columns, &height);
    bool threads = options->threads != screen->toggle_threads;
    /* Of the height: two lines above, a blank one, the table's titles, the keys. */
    unsigned body = height > 8 ? height - 5 : 3;
    CLEANUP_FREE char *findings = findings_text(account, columns, body / 3, symbols);
    unsigned finding_lines = findings != NULL ? lines_of(findings) : 0;

    size_t count, process_count, live = 0;
    const struct account_process *processes = account_processes(account, &process_count);
    uint64_t kernel = 0, user = 0, samples = 0;
    for (size_t i = 0; i < process_count; i++) {
        kernel += processes[i].samples_copying_kernel;
        user += processes[i].samples_copying_user;
        samples += processes[i].samples;
        live += !processes[i].exited;
    }
    const struct account_row *rows = account_rows(account, threads, &count);
    CLEANUP_FREE struct table_row *table_rows = calloc(count + 1, sizeof *table_rows);
    CLEANUP_FREE char *text = NULL;
    size_t length;
    FILE *stream = table_rows != NULL ? open_memstream(&text, &length) : NULL;
    if (stream == NULL)
        return; /* no memory: the next one may do */
    work_out_rates(screen, rows, count, account_elapsed_ns(account), table_rows);
    if (screen->order != BY_BYTES)
        qsort(table_rows, count, sizeof *table_rows, screen->order == BY_RATE ? more_rate : more_copies);

    const char *bold = options->colour ? "\033[1m" : "", *dim = options->colour ? "\033[2m" : "";
    const char *plain = options->colour ? "\033[0m" : "";
    char time[TEXT_SIZE_MAX], lost[512], printable[2048];
    fprintf(stream, "%ssluice trace%s  %s  tier %s  %zu process%s", bold, plain,
            text_format_duration(account_elapsed_ns(account) / 1000000, time, sizeof time),
            format_tier(account_tier(account)), live, live == 1 ? "" : "es");
    if (format_lost(account_lost(account), lost, sizeof lost)[0] != '\0')
        fprintf(stream, "  %sLOST: %s%s", options->colour ? "\033[33m" : "", lost, plain);
    else
        fputs("  nothing lost", stream);
    if (format_counted(account, lost, sizeof lost)[0] != '\0')
        fprintf(stream, "  %s%s%s", options->colour ? "\033[33m" : "", lost, plain);
    fputc('\n', stream);
    draw_bar(stream, kernel, user, samples, columns >= 100 ? 40 : columns >= 70 ? 20 : 8, options->colour, symbols);
    unsigned used = 2;
    if (options->notice != NULL && options->notice[0] != '\0' && height >= 12) {
        char cut[2048], line[1024];
        snprintf(line, sizeof line, "%.*s", (int)strcspn(options->notice, "\n"), options->notice);
        format_printable(line, symbols, printable, sizeof printable);
        fprintf(stream, "%s%s%s\n", dim, format_cut(printable, columns, symbols, cut, sizeof cut), plain);
        used++;
    }
    fputc('\n', stream);
    used++;

    unsigned below = finding_lines > 0 ? finding_lines + 1 : 0;
    unsigned room = height > used + below + 2 ? height - used - below - 2 : 1; /* titles and keys */
    size_t limit = options->rows > 0 ? min_size(options->rows, room) : room;
    size_t shown = min_size(count, limit);
    if (count > shown && shown > 1 && shown == room)
        shown--; /* for the line that says so */
    struct table_options table = {
        .columns = ((1u << TABLE_COLUMN_COUNT) - 1) & ~(threads ? 0 : 1u << TABLE_THREAD),
        .width = columns,
        .colour = options->colour,
    };
    table_print(stream, account, table_rows, shown, &table);
    used += 1 + (unsigned)shown;
    if (count > shown) {
        fprintf(stream, "%sand %zu more%s\n", dim, count - shown, plain);
        used++;
    } else if (count == 0) {
        fprintf(stream, "%snothing has been moved yet%s\n", dim, plain);
        used++;
    }
    for (; used + below + 1 < height; used++)
        fputc('\n', stream);
    if (below > 0)
        fprintf(stream, "\n%s", findings);
    fprintf(stream, "%s q quit  t %s  s by %s  p pause%s", dim, threads ? "processes" : "threads",
            order_names[(screen->order + 1) % ORDER_COUNT], plain);
    if (fclose(stream) == 0)
        send_frame(screen, text, columns, height);
}

/* Write over the last line at once; the next drawing may be a while off. */
static void say_below(const struct screen *screen, const char *text)
{
    unsigned columns, rows;
    char line[256];
    window_of(screen, &columns, &rows);
    int length = snprintf(line, sizeof line, "\033[%u;1H %.*s\033[K", rows, (int)min_size(columns, 100) - 1, text);
    put(screen->fd, line, min_size((size_t)length, sizeof line - 1));
}

bool screen_key(struct screen *screen)
{
    char keys[64];
    ssize_t count = read(screen->fd, keys, sizeof keys);
    if (count < 0)
        return errno == EIO;            /* the terminal has gone away */
    if (count > 0 && keys[0] == '\033') /* arrows and the like come as one piece; none means anything here */
        return false;
    for (ssize_t i = 0; i < count; i++) {
        switch (keys[i]) {
        case 'q':
        case 'Q':
        case 4: /* ^D, and ^C where it makes no signal */
        case 3:
            return true;
        case 't':
            screen->toggle_threads = !screen->toggle_threads;
            screen->drawn = false; /* rows of threads have no rates yet */
            screen->before_count = 0;
            say_below(screen, screen->toggle_threads ? "threads ..." : "processes ...");
            break;
        case 's':
            screen->order = (screen->order + 1) % ORDER_COUNT;
            say_below(screen, order_names[screen->order]);
            break;
        case 'p':
            screen->paused = !screen->paused;
            say_below(screen, screen->paused ? "paused: p goes on  q quits" : "going on ...");
            break;
        default:
            break;
        }
    }
    return false;
}
