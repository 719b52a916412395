/* SPDX-License-Identifier: MIT
 *
 * The cache of open files on a real loop and a real file system. A "turn" lets the loop handle what is pending.
 */
#include "check.h"
#include "directory.h"
#include "http/files.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/vfs.h>

static struct sluice_loop *loop;
static struct files *files;
static struct files_root *served; /* whose files are asked for */
static int root = -1;

static void begin(const struct files_options *wanted)
{
    struct files_options options = *wanted;
    if (root < 0)
        root = directory_make();
    if (sluice_loop_new(NULL, &loop) < 0)
        abort();
    options.loop = loop;
    const struct files_root_options roots[] = {{.directory = root}};
    if (options.root_count == 0) {
        options.roots = roots;
        options.root_count = 1;
    }
    if (options.capacity == 0)
        options.capacity = 16;
    if (files_new(&options, &files) < 0)
        abort();
    served = files_root(files, 0);
}

static void end(void)
{
    CHECK(!files_busy(files));
    files_free(files);
    sluice_loop_free(loop);
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

static void turn(void)
{
    struct sluice_timer timer = {0};
    sluice_timer_start(loop, &timer, 1, stop, NULL);
    sluice_loop_run(loop);
}

struct answer {
    int result;
    struct file *file;
};

static void on_found(void *context, int result, struct file *file)
{
    *(struct answer *)context = (struct answer){result, file};
    sluice_loop_stop(loop);
}

/* With a helper's help where it is needed. Returns the result; *file is NULL or a reference. */
static int find(const char *path, struct file **file, bool *ret_helped)
{
    struct answer answer = {0};
    struct files_lookup *lookup;
    answer.result = files_find(served, path, strlen(path), &answer.file);
    if (ret_helped != NULL)
        *ret_helped = answer.result == 0;
    if (answer.result == 0) {
        if (files_look_up(served, path, strlen(path), on_found, &answer, &lookup) < 0)
            abort();
        sluice_loop_run(loop);
    }
    *file = answer.result == 1 ? answer.file : NULL;
    return answer.result;
}

/* The text that the file found holds. */
static const char *text_of(const char *path)
{
    static char text[64];
    struct file *file;
    if (find(path, &file, NULL) != 1)
        return NULL;
    ssize_t size = pread(sluice_end_fd(file->end), text, sizeof text - 1, 0);
    text[size < 0 ? 0 : size] = '\0';
    if ((uint64_t)size != file->size)
        strcpy(text, "(the size is wrong)");
    files_release(files, file);
    return text;
}

static uint64_t hits(void)
{
    struct files_counts counts;
    files_count(files, &counts);
    return counts.hits;
}

static bool is_watchable(void)
{
    struct statfs status;
    struct files_counts counts;
    file_write("probe", "x");
    text_of("probe");
    uint64_t before = hits();
    text_of("probe");
    files_count(files, &counts);
    return statfs(".", &status) == 0 && status.f_type != (long)OVERLAYFS_SUPER_MAGIC && counts.hits > before;
}
/* Ask for a file until it is vouched for: not at once when its making is an event still to be read. */
static void warm_up(const char *path)
{
    uint64_t before = hits();
    for (int i = 0; i < 4 && hits() == before; i++) {
        turn();
        text_of(path);
    }
}

#define NEEDS_WATCHES                                                                                                  \
    if (!is_watchable()) {                                                                                             \
        end();                                                                                                         \
        SKIP("/tmp cannot be watched; needs ext4, XFS, btrfs or tmpfs there, and a free inotify instance");            \
    }

TEST("the second request for a file is answered from memory")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    file_write("a", "one");
    CHECK_STR(text_of("a"), "one");
    uint64_t before = hits();
    CHECK_STR(text_of("a"), "one");
    CHECK_EQ(hits(), before + 1);
    end();
}

/* Each of these changes "sub/f" so that the next request must see it, after the loop has had its turn. */
static void see_changes(void)
{
    mkdir("sub", 0755);
    file_write("sub/f", "one");
    CHECK_STR(text_of("sub/f"), "one");
    file_write("sub/f", "two!");
    turn();
    CHECK_STR(text_of("sub/f"), "two!");
    file_write("sub/f", "TWO!"); /* of the same size */
    turn();
    CHECK_STR(text_of("sub/f"), "TWO!");
    file_write("sub/g", "three");
    rename("sub/g", "sub/f");
    turn();
    CHECK_STR(text_of("sub/f"), "three");
    truncate("sub/f", 2);
    turn();
    CHECK_STR(text_of("sub/f"), "th");
    unlink("sub/f");
    turn();
    CHECK(text_of("sub/f") == NULL);
    file_write("sub/f", "four");
    turn();
    CHECK_STR(text_of("sub/f"), "four");
    rename("sub", "gone");
    turn();
    CHECK(text_of("sub/f") == NULL);
    mkdir("sub", 0755);
    file_write("sub/f", "five");
    turn();
    CHECK_STR(text_of("sub/f"), "five");
    unlink("gone/f");
    rmdir("gone");
    unlink("sub/f");
    symlink("../outside", "sub/f");
    turn();
    CHECK(text_of("sub/f") == NULL);
    unlink("sub/f");
    rmdir("sub");
}

TEST("a change of any kind is seen, by watches")
{
    begin(&(struct files_options){0});
    see_changes();
    end();
}

TEST("a change of any kind is seen, without watches")
{
    begin(&(struct files_options){.unwatched = true});
    see_changes();
    CHECK_EQ(hits(), 0);
    end();
}

TEST("a change of any kind is seen, without openat2")
{
    begin(&(struct files_options){.walk = true});
    see_changes();
    end();
}

TEST("a file with two names is answered from memory, and what is written through either is seen")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("here", 0755);
    mkdir("there", 0755);
    mkdir("unserved", 0755);
    file_write("there/f", "one");
    CHECK_EQ(link("there/f", "here/f"), 0);
    CHECK_EQ(link("there/f", "unserved/f"), 0);
    warm_up("here/f");
    warm_up("there/f");
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"there/f", "here/f", "unserved/f"}, *const texts[] = {"2", "three", "four"};
        uint64_t before = hits();
        const char *now = i == 0 ? "one" : texts[i - 1];
        CHECK_STR(text_of("here/f"), now);
        CHECK_STR(text_of("there/f"), now);
        CHECK_EQ(hits(), before + 2);
        file_write(names[i], texts[i]);
        turn();
        before = hits();
        CHECK_STR(text_of("here/f"), texts[i]);
        CHECK_STR(text_of("there/f"), texts[i]);
        CHECK_EQ(hits(), before);
        warm_up("here/f");
        warm_up("there/f");
    }
    end();
}

TEST("of two names that share a watch, the one that stays open longer keeps it")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("first", 0755);
    mkdir("second", 0755);
    file_write("first/f", "one");
    CHECK_EQ(link("first/f", "second/f"), 0);
    for (int i = 0; i < 2; i++) {
        const char *gone = i == 0 ? "first/f" : "second/f", *kept = i == 0 ? "second/f" : "first/f";
        const char *text = i == 0 ? "two" : "three";
        files_shed(files, 16);
        warm_up(gone);
        warm_up(kept);
        CHECK_EQ(files_shed(files, 1), 1); /* the one that was not used for longer */
        turn();
        uint64_t before = hits();
        CHECK(text_of(kept) != NULL);
        CHECK_EQ(hits(), before + 1);
        file_write(gone, text);
        turn();
        CHECK_STR(text_of(kept), text);
    }
    end();
}

TEST("a hard link made later is noticed, and what is written through it is seen")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("named", 0755);
    mkdir("aside", 0755);
    file_write("named/f", "one");
    warm_up("named/f");
    uint64_t before = hits();
    CHECK_STR(text_of("named/f"), "one");
    CHECK_EQ(hits(), before + 1);
    CHECK_EQ(link("named/f", "aside/f"), 0);
    turn();
    CHECK_STR(text_of("named/f"), "one"); /* looked at anew: it has changed */
    CHECK_EQ(hits(), before + 1);
    warm_up("named/f");
    before = hits();
    file_write("aside/f", "other");
    turn();
    CHECK_STR(text_of("named/f"), "other");
    CHECK_EQ(hits(), before);
    unlink("aside/f");
    warm_up("named/f");
    CHECK_STR(text_of("named/f"), "other");
    end();
}

TEST("what is written by a descriptor of a name that is gone is seen")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("kept", 0755);
    mkdir("lost", 0755);
    file_write("kept/f", "one");
    CHECK_EQ(link("kept/f", "lost/f"), 0);
    int fd = open("lost/f", O_WRONLY | O_CLOEXEC);
    unlink("lost/f");
    warm_up("kept/f");
    uint64_t before = hits();
    CHECK_STR(text_of("kept/f"), "one");
    CHECK_EQ(hits(), before + 1);
    CHECK_EQ(pwrite(fd, "longer", 6, 0), 6);
    turn();
    CHECK_STR(text_of("kept/f"), "longer");
    close(fd);
    end();
}

static void begin_with(const char *other, enum beneath_symlinks symlinks, const struct http_extras *extras)
{
    if (root < 0)
        root = directory_make();
    mkdir(other, 0755);
    struct files_root_options roots[] = {
        {.directory = root},
        {.directory = open(other, O_PATH | O_DIRECTORY | O_CLOEXEC), .symlinks = symlinks, .extras = extras},
    };
    /* What is told of files is made anew when they are looked at, which watches spare. */
    begin(&(struct files_options){.roots = roots, .root_count = 2, .unwatched = extras != NULL});
}

TEST("two roots have the same paths without mixing their files up")
{
    begin_with("../beside", BENEATH_SYMLINKS_INSIDE, NULL);
    mkdir("both", 0755);
    mkdir("../beside/both", 0755);
    file_write("both/f", "here");
    file_write("../beside/both/f", "there");
    for (int i = 0; i < 3; i++) {
        served = files_root(files, 0);
        CHECK_STR(text_of("both/f"), "here");
        served = files_root(files, 1);
        CHECK_STR(text_of("both/f"), "there");
        turn();
    }
    file_write("../beside/both/f", "changed");
    turn();
    CHECK_STR(text_of("both/f"), "changed");
    served = files_root(files, 0);
    CHECK_STR(text_of("both/f"), "here");
    CHECK(text_of("../beside/both/f") == NULL);
    end();
}

TEST("a directory beneath two roots is answered from memory for both, and a change is seen by both")
{
    begin_with("inner", BENEATH_SYMLINKS_INSIDE, NULL);
    NEEDS_WATCHES
    mkdir("inner/deep", 0755);
    file_write("inner/deep/f", "one");
    static const char *const texts[] = {"two", "three"};
    for (unsigned i = 0; i < 3; i++) {
        const char *text = i == 0 ? "one" : texts[i - 1];
        for (unsigned number = 0; number < 2; number++) {
            const char *path = number == 0 ? "inner/deep/f" : "deep/f";
            served = files_root(files, number);
            warm_up(path);
            uint64_t before = hits();
            CHECK_STR(text_of(path), text);
            CHECK_EQ(hits(), before + 1);
        }
        if (i == 2)
            break;
        /* By another name, so that it is the directory's watch that tells. */
        file_write("inner/deep/g", texts[i]);
        rename("inner/deep/g", "inner/deep/f");
        turn();
    }
    /* A file's own watch does not tell that it has another name now. */
    rename("inner/deep/f", "inner/deep/elsewhere");
    turn();
    for (unsigned number = 0; number < 2; number++) {
        served = files_root(files, number);
        CHECK(text_of(number == 0 ? "inner/deep/f" : "deep/f") == NULL);
    }
    rename("inner/deep/elsewhere", "inner/deep/f");
    turn();
    warm_up("deep/f");
    rename("inner/deep", "inner/gone");
    turn();
    CHECK(text_of("deep/f") == NULL);
    served = files_root(files, 0);
    CHECK(text_of("inner/deep/f") == NULL);
    CHECK_STR(text_of("inner/gone/f"), "three");
    end();
}

TEST("a link that leads outside is served where links are followed, and seen when it is turned elsewhere")
{
    begin_with("followed", BENEATH_SYMLINKS_FOLLOW, NULL);
    served = files_root(files, 1);
    CHECK_EQ(symlink("../../outside", "followed/link"), 0);
    CHECK_STR(text_of("link"), "secret");
    CHECK_STR(text_of("link"), "secret");
    file_write("followed/plain", "own");
    unlink("followed/link");
    CHECK_EQ(symlink("plain", "followed/link"), 0);
    turn();
    CHECK_STR(text_of("link"), "own");
    served = files_root(files, 0);
    CHECK(text_of("followed/link") != NULL); /* it stays inside */
    end();
}

TEST("no link is served where none is followed")
{
    begin_with("strict", BENEATH_SYMLINKS_NEVER, NULL);
    served = files_root(files, 1);
    file_write("strict/plain", "own");
    CHECK_EQ(symlink("plain", "strict/link"), 0);
    CHECK(text_of("link") == NULL);
    CHECK_STR(text_of("plain"), "own");
    unlink("strict/plain");
    CHECK_EQ(symlink("../../outside", "strict/plain"), 0);
    turn();
    CHECK(text_of("plain") == NULL);
    end();
}

static bool says(const struct file *file, const char *text)
{
    return memmem(file->fields.text, file->fields.length, text, strlen(text)) != NULL;
}

TEST("what a root's files are told to say is said, also when a tag has become a strong one")
{
    struct http_extras extras = {0};
    const char *why;
    struct file *file;
    CHECK_EQ(http_extras_add_cache(&extras, "*.js=max-age=60", &why), 0);
    CHECK_EQ(http_extras_add_header(&extras, "X-One: 1", &why), 0);
    begin_with("told", BENEATH_SYMLINKS_INSIDE, &extras);
    served = files_root(files, 1);
    file_write("told/a.js", "x");
    file_write("told/b.css", "x");
    for (int i = 0; i < 20; i++) {
        if (find("a.js", &file, NULL) != 1)
            abort();
        CHECK(says(file, "\r\nX-One: 1\r\nCache-Control: max-age=60\r\n\r\n"));
        bool strong = !file->weak;
        files_release(files, file);
        if (strong)
            break;
        CHECK(i < 19);
        usleep(10000);
    }
    if (find("b.css", &file, NULL) != 1)
        abort();
    CHECK(says(file, "\r\nX-One: 1\r\n\r\n"));
    files_release(files, file);
    served = files_root(files, 0);
    if (find("told/a.js", &file, NULL) != 1)
        abort();
    CHECK(!says(file, "X-One") && !says(file, "Cache-Control"));
    files_release(files, file);
    end();
    http_extras_free(&extras);
}

/* The event of another file's change is read before the helper's answer. */
static void look_up_beside_an_event(const char *path)
{
    struct answer answer = {0};
    struct files_lookup *lookup;
    file_write("probe", "y");
    CHECK_EQ(files_look_up(served, path, strlen(path), on_found, &answer, &lookup), 0);
    sluice_loop_run(loop);
    CHECK_EQ(answer.result, 1);
    files_release(files, answer.file);
    turn();
}

TEST("a file looked up while something else changed is answered from memory after one check")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("unsure", 0755);
    file_write("unsure/f", "one");
    file_write("unsure/g", "known");
    warm_up("unsure/g");
    look_up_beside_an_event("unsure/f");
    uint64_t before = hits();
    CHECK_STR(text_of("unsure/f"), "one");
    CHECK_EQ(hits(), before);
    CHECK_STR(text_of("unsure/f"), "one");
    CHECK_EQ(hits(), before + 1);
    end();
}

TEST("the same in a directory that was not known, a second later")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    mkdir("unknown", 0755);
    file_write("unknown/f", "one");
    look_up_beside_an_event("unknown/f");
    uint64_t before = hits();
    CHECK_STR(text_of("unknown/f"), "one");
    CHECK_EQ(hits(), before);
    struct timespec pause = {.tv_sec = 1, .tv_nsec = 100000000};
    nanosleep(&pause, NULL);
    turn();
    CHECK_STR(text_of("unknown/f"), "one");
    CHECK_STR(text_of("unknown/f"), "one");
    CHECK_EQ(hits(), before + 1);
    end();
}

TEST("a file behind a symbolic link is checked at every request")
{
    begin(&(struct files_options){0});
    file_write("one", "one");
    file_write("two", "two");
    CHECK_EQ(symlink("one", "link"), 0);
    CHECK_STR(text_of("link"), "one");
    unlink("link");
    CHECK_EQ(symlink("two", "link"), 0);
    CHECK_STR(text_of("link"), "two");
    CHECK_EQ(hits(), 0);
    end();
}

TEST("a file in use stays as it is when it is replaced")
{
    begin(&(struct files_options){0});
    struct file *old;
    file_write("used", "old");
    CHECK_EQ(find("used", &old, NULL), 1);
    file_write("new", "newer");
    rename("new", "used");
    turn();
    CHECK_STR(text_of("used"), "newer");
    char text[8] = "";
    CHECK_EQ(pread(sluice_end_fd(old->end), text, 7, 0), 3);
    CHECK_STR(text, "old");
    CHECK_EQ(old->size, 3);
    files_release(files, old);
    end();
}

TEST("no more files stay open than the capacity says, and those in use not less")
{
    begin(&(struct files_options){.capacity = 4});
    struct file *held;
    struct files_counts counts;
    file_write("held", "h");
    CHECK_EQ(find("held", &held, NULL), 1);
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "many%d", i);
        file_write(name, name);
        CHECK_STR(text_of(name), name);
    }
    files_count(files, &counts);
    CHECK(counts.open <= 4);
    char byte;
    CHECK_EQ(pread(sluice_end_fd(held->end), &byte, 1, 0), 1);
    files_release(files, held);
    end();
}

TEST("what is neither a file nor a directory does not exist, and is not opened")
{
    begin(&(struct files_options){0});
    struct file *file;
    mkfifo("fifo", 0644);
    mkdir("directory", 0755);
    CHECK_EQ(find("fifo", &file, NULL), -ENOENT);
    /* A writer that does not wait is refused: nobody has the FIFO open for reading, nor had. */
    CHECK_EQ(open("fifo", O_WRONLY | O_NONBLOCK), -1);
    CHECK_EQ(find("directory", &file, NULL), -EISDIR);
    CHECK_EQ(find("nothing", &file, NULL), -ENOENT);
    CHECK_EQ(find("probe/below", &file, NULL), -ENOTDIR);
    end();
}

TEST("out of descriptors, unused files make room")
{
    begin(&(struct files_options){.capacity = 16});
    struct rlimit limit, less;
    for (int i = 0; i < 8; i++) {
        char name[16];
        snprintf(name, sizeof name, "many%d", i);
        file_write(name, name);
        CHECK_STR(text_of(name), name);
    }
    file_write("wanted", "wanted");
    getrlimit(RLIMIT_NOFILE, &limit);
    less = limit;
    less.rlim_cur = 64;
    setrlimit(RLIMIT_NOFILE, &less);
    int fillers[64], count = 0;
    while ((fillers[count] = dup(0)) >= 0)
        count++;
    struct file *file;
    int r = find("wanted", &file, NULL);
    while (count > 0)
        close(fillers[--count]);
    setrlimit(RLIMIT_NOFILE, &limit);
    CHECK_EQ(r, 1);
    files_release(files, file);
    end();
}

TEST("the tag is weak while a change could go unseen, and strong then")
{
    begin(&(struct files_options){0});
    struct file *file;
    file_write("tag", "x");
    CHECK_EQ(find("tag", &file, NULL), 1);
    bool weak_at_first = file->weak;
    files_release(files, file);
    struct timespec pause = {.tv_sec = 1, .tv_nsec = 100000000};
    nanosleep(&pause, NULL); /* beyond the time after which a watched file is checked, too */
    turn();
    CHECK_EQ(find("tag", &file, NULL), 1);
    CHECK(weak_at_first);
    CHECK(!file->weak);
    CHECK_EQ(file->etag.data[0], '"');
    CHECK(memmem(file->fields.text, file->fields.length, "W/", 2) == NULL);
    files_release(files, file);
    end();
}

static void begin_precompressed(void)
{
    if (root < 0)
        root = directory_make();
    const struct files_root_options roots[] = {{.directory = root, .precompressed = true}};
    begin(&(struct files_options){.roots = roots, .root_count = 1});
}

/* The result of looking for a sibling, with a helper's help where it is needed. */
static int find_coded(struct file *file, enum http_coding coding, struct file **ret_coded)
{
    struct answer answer = {0};
    struct files_lookup *lookup;
    int result = files_find_coded(file, coding, ret_coded);
    if (result == 0) {
        if (files_look_up_coded(file, coding, on_found, &answer, &lookup) < 0)
            abort();
        sluice_loop_run(loop);
        result = answer.result;
        *ret_coded = answer.file;
    }
    return result;
}

TEST("a sibling has the type of its file, its coding, and a tag of its own; by its own name it is another file")
{
    begin_precompressed();
    struct file *file, *coded, *plain;
    mkdir("coded", 0755);
    file_write("coded/page.html", "a page");
    file_write("coded/page.html.gz", "zipped");
    CHECK_EQ(find("coded/page.html", &file, NULL), 1);
    CHECK(file->negotiable);
    CHECK(says(file, "Vary: Accept-Encoding\r\n") && !says(file, "Content-Encoding"));
    CHECK_EQ(find_coded(file, HTTP_GZIP, &coded), 1);
    CHECK(!coded->negotiable);
    CHECK_EQ(coded->coding, HTTP_GZIP);
    CHECK(says(coded, "Content-Type: text/html; charset=utf-8\r\nContent-Encoding: gzip\r\n"));
    CHECK(says(coded, "Vary: Accept-Encoding\r\n"));
    CHECK(coded->etag.length != file->etag.length || memcmp(coded->etag.data, file->etag.data, file->etag.length) != 0);
    CHECK_EQ(find("coded/page.html.gz", &plain, NULL), 1);
    CHECK(plain != coded);
    CHECK(says(plain, "Content-Type: application/gzip\r\n") && !says(plain, "Content-Encoding"));
    files_release(files, plain);
    files_release(files, coded);
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), -ENOENT);
    files_release(files, file);
    end();
}

TEST("without the option no file is negotiable, and none varies")
{
    begin(&(struct files_options){0});
    struct file *file;
    file_write("alone.html", "a page");
    CHECK_EQ(find("alone.html", &file, NULL), 1);
    CHECK(!file->negotiable);
    CHECK(!says(file, "Vary"));
    files_release(files, file);
    end();
}

TEST("that a sibling is missing is remembered until one is made, changed, or removed again")
{
    begin_precompressed();
    NEEDS_WATCHES
    struct file *file, *coded;
    struct files_counts before, after;
    mkdir("later", 0755);
    file_write("later/page.html", "a page");
    warm_up("later/page.html");
    CHECK_EQ(find("later/page.html", &file, NULL), 1);
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), -ENOENT);
    CHECK_EQ(files_find_coded(file, HTTP_BR, &coded), -ENOENT);
    file_write("later/page.html.br", "brotli");
    CHECK_EQ(files_find_coded(file, HTTP_BR, &coded), -ENOENT); /* the event has not been read */
    turn();
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), 1);
    files_release(files, coded);
    turn();
    files_count(files, &before);
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), 1);
    files_release(files, coded);
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), 1);
    files_release(files, coded);
    files_count(files, &after);
    CHECK(after.hits > before.hits);
    file_write("later/page.html.br", "brotli again");
    turn();
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), 1);
    CHECK_EQ(coded->size, 12);
    files_release(files, coded);
    CHECK_EQ(rename("later/page.html.br", "later/other"), 0); /* of which the file's own watch tells nothing */
    turn();
    CHECK_EQ(find_coded(file, HTTP_BR, &coded), -ENOENT);
    files_release(files, file);
    end();
}

TEST("a cancelled lookup calls nobody and leaves nothing behind")
{
    begin(&(struct files_options){0});
    struct answer answer = {0};
    struct files_lookup *lookup;
    mkdir("never", 0755);
    file_write("never/asked", "x");
    CHECK_EQ(files_look_up(served, "never/asked", 11, on_found, &answer, &lookup), 0);
    files_cancel(lookup);
    for (int i = 0; i < 50 && files_busy(files); i++)
        turn();
    CHECK(!files_busy(files));
    CHECK_EQ(answer.result, 0);
    end();
}

TEST("a change while a helper opens the file is not missed")
{
    begin(&(struct files_options){0});
    NEEDS_WATCHES
    struct answer answer = {0};
    struct files_lookup *lookup;
    mkdir("race", 0755);
    file_write("race/f", "one");
    CHECK_EQ(files_look_up(served, "race/f", 6, on_found, &answer, &lookup), 0);
    usleep(50000); /* the helper is done, the loop has not heard of it */
    file_write("race/f", "second");
    sluice_loop_run(loop);
    CHECK_EQ(answer.result, 1);
    files_release(files, answer.file);
    turn();
    CHECK_STR(text_of("race/f"), "second");
    end();
}

CHECK_MAIN()
