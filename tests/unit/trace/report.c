/* SPDX-License-Identifier: MIT */
#include "trace/report.h"
#include "base/cleanup.h"
#include "check.h"
#include "invented.h"
#include "trace/format.h"
#include "trace/table.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

/* ---- Text ---- */

static const struct format_symbols *symbols_of(const char *locale)
{
    setenv("LC_ALL", locale, 1);
    return format_symbols();
}

TEST("names are made printable: controls, broken UTF-8 and turned writing become \\xHH")
{
    const struct format_symbols *symbols = symbols_of("C.UTF-8");
    char text[FORMAT_NAME_MAX];
    CHECK_STR(format_printable("a\033[2J\n\x7f z", symbols, text, sizeof text), "a\\x1b[2J\\x0a\\x7f z");
    CHECK_STR(format_printable("日\xe6\x97 \xc0\xaf \xe0\x80\xaf \xed\xa0\x80", symbols, text, sizeof text),
              "日\\xe6\\x97 \\xc0\\xaf \\xe0\\x80\\xaf \\xed\\xa0\\x80");
    CHECK_STR(format_printable("a\u202eb", symbols, text, sizeof text), "a\\xe2\\x80\\xaeb");
    CHECK_STR(format_printable("é", symbols_of("C"), text, sizeof text), "\\xc3\\xa9");
    CHECK_STR(format_printable("a\xff", symbols, text, 4), "a");
}

TEST("columns are counted as terminals show characters: wide ones are two, combining ones none")
{
    CHECK_EQ(format_columns("abc"), 3);
    CHECK_EQ(format_columns("日本"), 4);
    CHECK_EQ(format_columns("e\u0301"), 1);
    CHECK_EQ(format_columns("→…·"), 3);
}

TEST("a name that is too long loses its middle")
{
    const struct format_symbols *symbols = symbols_of("C.UTF-8");
    char text[FORMAT_NAME_MAX];
    CHECK_STR(format_cut("/usr/share/doc", 14, symbols, text, sizeof text), "/usr/share/doc");
    CHECK_STR(format_cut("/usr/share/doc", 9, symbols, text, sizeof text), "/usr…/doc");
    CHECK_STR(format_cut("/usr/share/doc", 9, symbols_of("C"), text, sizeof text), "/us...doc");
    for (size_t width = 0; width < 20; width++)
        CHECK(format_columns(format_cut("日本語ファイル名", width, symbols, text, sizeof text)) <= width);
}

static char *wrapped(const char *first, const char *text, unsigned width)
{
    char *all = NULL;
    size_t size;
    FILE *stream = open_memstream(&all, &size);
    format_wrap(stream, first, text, width);
    fclose(stream);
    return all;
}

TEST("text is broken at spaces, never between a number and its unit, and within words only that fit no line")
{
    CLEANUP_FREE char *plain = wrapped("* ", "copying takes 41 % of it", 16);
    CHECK_STR(plain, "* copying takes\n  41 % of it\n");
    CLEANUP_FREE char *unit = wrapped("", "takes 41 % of", 8);
    CHECK_STR(unit, "takes\n41 % of\n");
    CLEANUP_FREE char *word = wrapped("", "abcdefghij", 4);
    CHECK_STR(word, "abcd\nefgh\nij\n");
    CLEANUP_FREE char *whole = wrapped("  ", "all of it on one line", 0);
    CHECK_STR(whole, "  all of it on one line\n");
    CLEANUP_FREE char *nothing = wrapped("  ", "", 10);
    CHECK_STR(nothing, "  \n");
}

TEST("copies per byte: a figure, a lower bound where some bytes are unknown, else unknown; never 0 for unknown")
{
    const struct format_symbols *symbols = symbols_of("C.UTF-8");
    char text[FORMAT_FIGURE_MAX];
    struct account_row row = {.value = {.bytes = 1000}, .copy_bytes = 2000};
    CHECK_STR(format_copies(&row, symbols, text), "2.0");
    row.copy_bytes = 0;
    CHECK_STR(format_copies(&row, symbols, text), "0");
    row.unknown_bytes = 1000;
    CHECK_STR(format_copies(&row, symbols, text), "unknown");
    row = (struct account_row){.value = {.bytes = 1000}, .copy_bytes = 900, .unknown_bytes = 100};
    CHECK_STR(format_copies(&row, symbols, text), "≥0.9");
    row = (struct account_row){.value = {.bytes = 1000}, .copy_bytes = 1};
    CHECK_STR(format_copies(&row, symbols, text), "< 0.1");
    CHECK_STR(format_transitions(&row, text), "unknown");
    row.value = (struct trace_flow_value){.bytes = UINT64_C(2) << 30, .transitions = 5000};
    CHECK_STR(format_transitions(&row, text), "2500");
    CHECK_STR(format_share(0, 0, text), "unknown");
    CHECK_STR(format_share(1, 1000, text), "< 1 %");
    CHECK_STR(format_share(0, 1000, text), "0 %");
    CHECK_STR(format_count(99999, text), "99999");
    CHECK_STR(format_count(1250000, text), "1.2 M");
    CHECK_STR(format_count(UINT64_MAX, text), "18.4 E");
}

/* ---- Lines ---- */

/* Not inlined: gcc 12 then takes a text that outlives the call for one that does not. */
__attribute__((noinline)) static char *lines(struct account *account, struct report_options options)
{
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    report_lines(stream, account, &options);
    fclose(stream);
    return text;
}

TEST("no line is wider than asked for, in any width, with and without Unicode, and none has control characters")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    static const char *const locales[] = {"C.UTF-8", "C"};
    for (unsigned l = 0; l < 2; l++) {
        symbols_of(locales[l]);
        for (unsigned width = 60; width <= 200; width++) {
            CLEANUP_FREE char *text =
                lines(account, (struct report_options){.width = width, .threads = width % 2 != 0});
            char *rest = text;
            for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
                if (format_columns(line) > width)
                    CHECK_FAIL("%zu columns of %u: %s", format_columns(line), width, line);
                for (const char *at = line; *at != '\0'; at++)
                    CHECK((unsigned char)*at >= ' ' && (l == 0 || (unsigned char)*at < 0x7f));
            }
        }
    }
}

TEST("whatever the width, each row has its bytes, copies, evidence, way and calls per GiB")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    static const unsigned widths[] = {0, 80, 100, 120, 160, 200};
    symbols_of("C.UTF-8");
    for (unsigned i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        CLEANUP_FREE char *text = lines(account, (struct report_options){.width = widths[i]});
        char *at = strstr(text, ".iso → tcp");
        CHECK(at != NULL);
        at[strcspn(at, "\n")] = ' '; /* its second line, if it has one */
        at[strcspn(at, "\n")] = '\0';
        CHECK(strstr(at, "3 GiB") != NULL);
        CHECK(strstr(at, "2.0") != NULL);
        CHECK(strstr(at, "by definition") != NULL);
        CHECK(strstr(at, "read + send") != NULL);
        CHECK(strstr(at, "32769") != NULL);
    }
}

TEST("a heading names the process, its CPU and the share that copying takes; unknown where there were no samples")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    symbols_of("C.UTF-8");
    CLEANUP_FREE char *text = lines(account, (struct report_options){.width = 0, .notice = "No functions here."});
    CHECK(strstr(text, "tier (b) tracepoints") != NULL);
    CHECK(strstr(text, "\nNo functions here.\n") != NULL);
    CHECK(strstr(text, "nginx (1234)\n  moved 4 GiB, copied 6 GiB · CPU 700 ms (70 % of one core) · copying is 41 % of "
                       "its CPU (kernel 38 %, user space 3 %)") != NULL);
    CHECK(strstr(text, "c\\x1bp\\xff (77)\n") != NULL);
    CHECK(strstr(text, "(not known of 50 MiB) · CPU unknown · share of CPU that copying takes: unknown") != NULL);
    CHECK(strstr(text, "27 %  _copy_to_iter ← send (nginx)") != NULL);
    CHECK(strstr(text, "1 more process moved nothing.") != NULL);
}

TEST("hundreds of processes are summed up but for ten, with their names; all of them are there when all are asked for")
{
    CLEANUP_ACCOUNT struct account *account = NULL;
    CHECK_EQ(account_new(ACCOUNT_TIER_TRACEPOINTS, &account), 0);
    for (uint32_t pid = 1000; pid < 1200; pid++) {
        struct trace_flow_key key = {.pid = pid, .thread = pid, .mechanism = TRACE_WRITE};
        struct trace_flow_value value = {.calls = 1, .bytes = 1 << 20};
        CHECK_EQ(account_enter_process(account, pid, 1, pid % 4 == 0 ? "sh" : "cat"), 0);
        CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    }
    CLEANUP_FREE char *some = lines(account, (struct report_options){.width = 0, .rows = 20});
    CHECK(strstr(some, "\ncat (1009)\n") != NULL);
    CHECK(strstr(some, " (1010)\n") == NULL);
    CHECK(strstr(some, "190 more processes moved 190 MiB, copied ") != NULL);
    CHECK(strstr(some, "(143 cat, 47 sh)") != NULL);
    CLEANUP_FREE char *all = lines(account, (struct report_options){.width = 0});
    CHECK(strstr(all, "\ncat (1199)\n") != NULL);
    CHECK(strstr(all, "more process") == NULL);
}

TEST("without programs in the kernel nobody is said to have moved nothing, only not to have been seen to")
{
    CLEANUP_ACCOUNT struct account *account = NULL;
    CHECK_EQ(account_new(ACCOUNT_TIER_PROC, &account), 0);
    CHECK_EQ(account_enter_process(account, 1000, 1, "cat"), 0);
    CLEANUP_FREE char *text = lines(account, (struct report_options){.width = 0});
    CHECK(strstr(text, "1 process moved nothing that was seen (") != NULL);
}

TEST("what was lost is listed when something was, and not otherwise")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_FREE char *before = lines(account, (struct report_options){.width = 0});
    CHECK(strstr(before, "Not recorded") == NULL);
    struct trace_lost lost = {.flows = 3 << 20, .flow_calls = 12, .ends = 4};
    account_enter_lost(account, &lost);
    CLEANUP_FREE char *after = lines(account, (struct report_options){.width = 0});
    CHECK(strstr(after, "Not recorded\n  3 MiB in 12 calls (no room for their flows); 4 ends") != NULL);
}

TEST("copies outside any call are listed as such")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    struct trace_copy_key key = {.function = TRACE_FN_SKB_COPY_UBUFS};
    struct trace_copy_value value = {.calls = 3, .bytes = 4096};
    CHECK(account_enter_copy(account, &key, &value) == 0);
    CLEANUP_FREE char *text = lines(account, (struct report_options){.width = 0});
    CHECK(strstr(text, "skb_copy_ubufs: 4 KiB in 3 calls") != NULL);
}

TEST("rows beyond the limit are summed up in one line")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_FREE char *text = lines(account, (struct report_options){.width = 0, .rows = 1});
    CHECK(strstr(text, "1 more pair of ends moved 1 GiB.") != NULL);
    CHECK(strstr(text, "ファイル") == NULL);
}

TEST("an empty account says that nothing was moved")
{
    CLEANUP_ACCOUNT struct account *account = NULL;
    CHECK(account_new(ACCOUNT_TIER_PROC, &account) == 0);
    CLEANUP_FREE char *text = lines(account, (struct report_options){.width = 80});
    CHECK(strstr(text, "Nothing was moved.") != NULL);
}

/* ---- Screen ---- */

struct terminal {
    int ours, theirs;
    struct screen *screen;
};

static void open_terminal(struct terminal *terminal, unsigned short columns, unsigned short rows)
{
    struct winsize window = {.ws_col = columns, .ws_row = rows};
    setenv("TERM", "xterm-256color", 1);
    symbols_of("C.UTF-8");
    if (openpty(&terminal->ours, &terminal->theirs, NULL, NULL, &window) != 0)
        CHECK_FAIL("no pseudo terminal: %s", strerror(errno));
    fcntl(terminal->ours, F_SETFL, O_NONBLOCK);
}

static void close_terminal(struct terminal *terminal)
{
    screen_close(terminal->screen);
    close_fd(terminal->ours);
    close_fd(terminal->theirs);
}
#define TERMINAL(columns, rows)                                                                                        \
    __attribute__((cleanup(close_terminal))) struct terminal terminal = {-1, -1, NULL};                                \
    open_terminal(&terminal, columns, rows)

/* What has been written to the terminal since the last call. */
static char *output(struct terminal *terminal)
{
    size_t size = 0, room = 1 << 20;
    char *text = malloc(room);
    for (;;) {
        ssize_t length = read(terminal->ours, text + size, room - size - 1);
        if (length <= 0)
            break;
        size += (size_t)length;
    }
    text[size] = '\0';
    return text;
}

/* Take the escape sequences out: what is left are characters and ends of lines. */
static void strip(char *text)
{
    char *to = text;
    while (*text != '\0') {
        if (*text == '\033' && text[1] == '[') {
            text += 2;
            while (*text != '\0' && (*text < '@' || *text > '~'))
                text++;
            text += *text != '\0';
        } else if (*text == '\r') {
            text++;
        } else {
            *to++ = *text++;
        }
    }
    *to = '\0';
}

TEST("the screen leaves the terminal as it was")
{
    TERMINAL(80, 24);
    CLEANUP_ACCOUNT struct account *account = invented();
    struct termios before, during, after;
    tcgetattr(terminal.theirs, &before);
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), 0);
    tcgetattr(terminal.theirs, &during);
    CHECK((during.c_lflag & (ICANON | ECHO)) == 0);
    screen_draw(terminal.screen, account, &(struct report_options){.width = 0});
    screen_close(terminal.screen);
    terminal.screen = NULL;
    tcgetattr(terminal.theirs, &after);
    CHECK(before.c_lflag == after.c_lflag && memcmp(before.c_cc, after.c_cc, sizeof before.c_cc) == 0);
    CLEANUP_FREE char *text = output(&terminal);
    const char *enter = strstr(text, "\033[?1049h"), *leave = strstr(text, "\033[?1049l");
    CHECK(enter != NULL && leave != NULL && leave > enter);
    CHECK(strstr(leave, "\033[?25h") != NULL || strstr(text, "\033[?25h\033[?1049l") != NULL);
}

TEST("exit() in the middle leaves the terminal as it was")
{
    TERMINAL(80, 24);
    struct termios before, after;
    tcgetattr(terminal.theirs, &before);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        fclose(stdout);
        exit(screen_open(terminal.theirs, &terminal.screen));
    }
    int status;
    /* What it writes has to be taken, for tcsetattr() waits for that. */
    CLEANUP_FREE char *text = NULL;
    for (int i = 0; i < 500; i++) {
        if (text == NULL || strstr(text, "\033[?1049l") == NULL) {
            char *more = output(&terminal), *all = NULL;
            if (asprintf(&all, "%s%s", text != NULL ? text : "", more) < 0)
                abort();
            free(more);
            free(text);
            text = all;
        }
        if (waitpid(child, &status, WNOHANG) == child) {
            child = 0;
            break;
        }
        poll(NULL, 0, 10);
    }
    CHECK_EQ(child, 0);
    CHECK(WIFEXITED(status));
    CHECK(strstr(text, "\033[?1049l") != NULL);
    tcgetattr(terminal.theirs, &after);
    CHECK(before.c_lflag == after.c_lflag);
}

TEST("a file, a pipe and a terminal that only takes lines have no screen")
{
    TERMINAL(80, 24);
    CLEANUP_FD int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK_EQ(screen_open(file, &terminal.screen), -ENOTTY);
    setenv("TERM", "dumb", 1);
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), -ENOTTY);
    unsetenv("TERM");
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), -ENOTTY);
    CHECK(terminal.screen == NULL);
}

TEST("a frame is as high and at most as wide as the window, which is asked for at each drawing")
{
    TERMINAL(80, 24);
    CLEANUP_ACCOUNT struct account *account = invented();
    static const unsigned short sizes[][2] = {{80, 24}, {120, 40}, {60, 15}, {30, 8}, {12, 3}, {200, 60}};
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), 0);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct winsize window = {.ws_col = sizes[i][0], .ws_row = sizes[i][1]};
        CHECK(ioctl(terminal.ours, TIOCSWINSZ, &window) == 0);
        free(output(&terminal));
        screen_draw(terminal.screen, account, &(struct report_options){.colour = i % 2 != 0, .notice = "notice"});
        CLEANUP_FREE char *text = output(&terminal);
        strip(text);
        unsigned count = 0;
        char *rest = text;
        for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n"), count++)
            if (format_columns(line) > sizes[i][0])
                CHECK_FAIL("%zu columns of %u: %s", format_columns(line), sizes[i][0], line);
        CHECK_EQ(count, sizes[i][1]);
    }
}

TEST("rates are bytes per second since the drawing before, unknown at first")
{
    TERMINAL(160, 24);
    CLEANUP_ACCOUNT struct account *account = invented();
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), 0);
    screen_draw(terminal.screen, account, &(struct report_options){.width = 0});
    CLEANUP_FREE char *first = output(&terminal);
    CHECK(strstr(first, "GiB/s") == NULL);
    invent_second(account);
    account_enter_time(account, 3000000000, 3000000000); /* two seconds */
    screen_draw(terminal.screen, account, &(struct report_options){.width = 0});
    CLEANUP_FREE char *second = output(&terminal);
    CHECK(strstr(second, "6 GiB  1.5 GiB/s") != NULL);
    screen_draw(terminal.screen, account, &(struct report_options){.width = 0});
    CLEANUP_FREE char *again = output(&terminal);
    CHECK(strstr(again, "6 GiB  1.5 GiB/s") != NULL); /* no time went by */
}

static bool press(struct terminal *terminal, const char *keys)
{
    if (write(terminal->ours, keys, strlen(keys)) < 0)
        abort();
    return screen_key(terminal->screen);
}

TEST("keys: t shows threads, s sorts, p pauses, q ends; arrows do nothing, and no key does not block")
{
    TERMINAL(160, 24);
    CLEANUP_ACCOUNT struct account *account = invented();
    struct report_options options = {.width = 0};
    CHECK_EQ(screen_open(terminal.theirs, &terminal.screen), 0);
    CHECK(!screen_key(terminal.screen));
    CHECK(!press(&terminal, "\033[A"));
    screen_draw(terminal.screen, account, &options);
    CLEANUP_FREE char *plain = output(&terminal);
    CHECK(strstr(plain, "THREAD") == NULL);
    CHECK(!press(&terminal, "t"));
    screen_draw(terminal.screen, account, &options);
    CLEANUP_FREE char *threads = output(&terminal);
    CHECK(strstr(threads, "THREAD") != NULL && strstr(threads, " 1235 ") != NULL);
    /* By copies: nginx's copied most, then 400 MiB of read + write, then those that copied nothing. */
    CHECK(!press(&terminal, "ss"));
    screen_draw(terminal.screen, account, &options);
    CLEANUP_FREE char *sorted = output(&terminal);
    CHECK(strstr(sorted, "read + write") < strstr(sorted, "sendfile "));
    CHECK(!press(&terminal, "p"));
    free(output(&terminal));
    screen_draw(terminal.screen, account, &options);
    CLEANUP_FREE char *paused = output(&terminal);
    CHECK_STR(paused, "");
    CHECK(press(&terminal, "q"));
}

CHECK_MAIN()
