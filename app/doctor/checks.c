/* SPDX-License-Identifier: MIT
 *
 * The checks. Where the kernel can be asked by trying, it is tried; files under /proc and /sys say the rest. Numbers in
 * comments are sections of KERNEL-FACTS.
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "doctor/findings.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/ethtool.h>
#include <linux/io_uring.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sluice/sluice.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* ---- Findings --------------------------------------------------------------------------------------------------- */

struct finding *findings_add(struct findings *findings, enum finding_level level, const char *what, ...)
{
    static struct finding nowhere;
    struct finding *larger = realloc(findings->items, (findings->count + 1) * sizeof *larger);
    if (larger == NULL) {
        findings->lost = true;
        return &nowhere;
    }
    findings->items = larger;
    struct finding *finding = &larger[findings->count++];
    memset(finding, 0, sizeof *finding);
    finding->level = level;
    finding->check = findings->check;
    va_list arguments;
    va_start(arguments, what);
    vsnprintf(finding->what, sizeof finding->what, what, arguments);
    va_end(arguments);
    return finding;
}

void finding_why(struct finding *finding, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding->why, sizeof finding->why, format, arguments);
    va_end(arguments);
}

void finding_remedy(struct finding *finding, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding->remedy, sizeof finding->remedy, format, arguments);
    va_end(arguments);
}

void findings_free(struct findings *findings)
{
    free(findings->items);
    *findings = (struct findings){.items = NULL};
}

const char *finding_level_name(enum finding_level level)
{
    static const char *const names[] = {"ok", "note", "unknown", "problem"};
    return names[level];
}

/* ---- What the kernel's files say ----------------------------------------------------------------------------------
 */

/* The beginning of a file, without a final newline. Returns 0 or a negative errno. */
static int read_text(const char *path, char *text, size_t size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, size - 1);
    if (got < 0)
        return -errno;
    text[got] = '\0';
    if (got > 0 && text[got - 1] == '\n')
        text[got - 1] = '\0';
    return 0;
}

static int read_number(const char *path, uint64_t *ret_number)
{
    char text[32];
    int result = read_text(path, text, sizeof text);
    return result < 0 ? result : text_parse_unsigned(text, ret_number);
}

static void cannot_read(struct findings *findings, const char *path, int code)
{
    findings_add(findings, FINDING_UNKNOWN, "%s cannot be read: %s (%s)", path, text_errno_meaning(code),
                 text_errno_name(code));
}

static bool is_capable(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    return syscall(SYS_capget, &header, data) == 0 && data[capability / 32].effective & 1u << capability % 32;
}

/* ---- io_uring -----------------------------------------------------------------------------------------------------
 */

static void check_io_uring(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    struct io_uring_params parameters = {0};
    struct finding *finding;
    CLEANUP_FD int ring = (int)syscall(SYS_io_uring_setup, 8u, &parameters);
    if (ring >= 0) {
        findings_add(findings, FINDING_OK, "io_uring can be used");
        return;
    }
    int error = errno;
    char disabled[32] = "";
    finding = findings_add(findings, FINDING_NOTE, "io_uring cannot be used: %s (%s)", text_errno_meaning(error),
                           text_errno_name(error));
    finding_why(finding, "The epoll loop serves instead; uring_send_zc is not to be had.");
    if (error == ENOMEM) {
        finding->level = FINDING_PROBLEM;
        finding_remedy(finding, "Raise the limit on locked memory: ulimit -l, or LimitMEMLOCK= of the service.");
    } else if (error == EPERM && read_text("/proc/sys/kernel/io_uring_disabled", disabled, sizeof disabled) == 0 &&
               strcmp(disabled, "0") != 0) {
        finding_remedy(finding, "It is switched off for %s here: sysctl kernel.io_uring_disabled=0 allows it.",
                       strcmp(disabled, "2") == 0 ? "everybody" : "the unprivileged");
    } else if (error == EPERM) {
        finding_remedy(finding, "A sandbox forbids it, most likely the container's seccomp profile: allow "
                                "io_uring_setup, io_uring_enter and io_uring_register there.");
    }
}

/* ---- Memory that may be lent to the kernel -------------------------------------------------------------------------
 */

/* MSG_ZEROCOPY wants many megabytes on their way, or it waits for acknowledgements (1: 2 MiB in flight made 0.19 GB/s).
 * What lib/core/memlock.c and sluice-routes(7) say, too. */
#define MEMLOCK_WANTED (16u << 20)

static void check_memlock(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    struct rlimit limit;
    char size[TEXT_SIZE_MAX];
    if (is_capable(CAP_IPC_LOCK)) {
        findings_add(findings, FINDING_OK, "locked memory is not limited for this process (CAP_IPC_LOCK)");
        return;
    }
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < MEMLOCK_WANTED) {
        struct finding *finding = findings_add(findings, FINDING_PROBLEM, "no more than %s of memory may be locked",
                                               text_format_size(limit.rlim_cur, size, sizeof size));
        finding_why(finding, "Memory that a zero-copy send lends to the kernel counts, and so do io_uring's registered "
                             "buffers: beyond the limit it is copied (ENOBUFS, ENOMEM).");
        finding_remedy(finding, "ulimit -l %u, or LimitMEMLOCK=%uM of the service.", MEMLOCK_WANTED >> 10,
                       MEMLOCK_WANTED >> 20);
        return;
    }
    findings_add(findings, FINDING_OK, "enough memory may be locked (ulimit -l)");
}

/* A notification takes some hundred bytes of it; 20 KiB, the default before Linux 6.8, holds about 100. */
#define OPTMEM_WANTED (128u << 10)

static void check_optmem(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    static const char path[] = "/proc/sys/net/core/optmem_max";
    uint64_t bytes;
    char size[TEXT_SIZE_MAX];
    int result = read_number(path, &bytes);
    if (result < 0) {
        cannot_read(findings, path, result);
        return;
    }
    if (bytes >= OPTMEM_WANTED) {
        findings_add(findings, FINDING_OK, "a socket has %s for notifications (net.core.optmem_max)",
                     text_format_size(bytes, size, sizeof size));
        return;
    }
    struct finding *finding =
        findings_add(findings, FINDING_PROBLEM, "a socket has only %s for the notifications of zero-copy sends",
                     text_format_size(bytes, size, sizeof size));
    finding_why(finding, "When it is full, sends fail with ENOBUFS and sluice copies.");
    finding_remedy(finding, "sysctl net.core.optmem_max=%u", OPTMEM_WANTED);
}

/* ---- Pipes --------------------------------------------------------------------------------------------------------
 */

#define PIPE_WANTED (1 << 20)

static void check_pipes(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    int fds[2];
    char size[TEXT_SIZE_MAX];
    uint64_t soft = 0, most = 0;
    if (pipe2(fds, O_CLOEXEC) < 0) {
        findings_add(findings, FINDING_UNKNOWN, "no pipe can be made: %s (%s)", text_errno_meaning(errno),
                     text_errno_name(errno));
        return;
    }
    int error = fcntl(fds[1], F_SETPIPE_SZ, PIPE_WANTED) < 0 ? errno : 0;
    int capacity = fcntl(fds[1], F_GETPIPE_SZ);
    close(fds[0]);
    close(fds[1]);
    read_number("/proc/sys/fs/pipe-user-pages-soft", &soft);
    read_number("/proc/sys/fs/pipe-max-size", &most);
    if (error != 0 || capacity < PIPE_WANTED) {
        struct finding *finding =
            findings_add(findings, FINDING_PROBLEM, "a pipe gets %s, not 1 MiB%s%s%s",
                         text_format_size((uint64_t)capacity, size, sizeof size), error != 0 ? " (" : "",
                         error != 0 ? text_errno_name(error) : "", error != 0 ? ")" : "");
        finding_why(finding, "splice and tee move less with each call: proxying by 64 KiB takes 1.5 times the CPU of "
                             "1 MiB, by 8 KiB several times.");
        if (most < PIPE_WANTED)
            finding_remedy(finding, "sysctl fs.pipe-max-size=1048576");
        else
            finding_remedy(finding, "This user's pipes hold all they may: sysctl fs.pipe-user-pages-soft=%u", 1u << 20);
        return;
    }
    findings_add(findings, FINDING_OK, "a pipe may have 1 MiB");
    if (soft == 0 || is_capable(CAP_SYS_RESOURCE) || is_capable(CAP_SYS_ADMIN))
        return;
    uint64_t pipes = soft * (uint64_t)sysconf(_SC_PAGESIZE) / PIPE_WANTED;
    struct finding *finding =
        findings_add(findings, FINDING_NOTE, "this user's processes may have %llu of them", (unsigned long long)pipes);
    finding_why(finding, "Past that, new pipes have 8 KiB or less, without an error (fs.pipe-user-pages-soft): it "
                         "matters to proxies with more connections under way than that.");
    finding_remedy(finding, "sysctl fs.pipe-user-pages-soft=0 lifts it.");
}

/* ---- Network devices ------------------------------------------------------------------------------------------------
 */

static int ask_feature(int fd, struct ifreq *request, uint32_t command, bool *ret_on)
{
    struct ethtool_value value = {.cmd = command};
    request->ifr_data = (void *)&value;
    if (ioctl(fd, SIOCETHTOOL, request) < 0)
        return -errno;
    *ret_on = value.data != 0;
    return 0;
}

static void check_device(int fd, const char *name, struct findings *findings)
{
    struct ifreq request = {0};
    bool gathers = false, sums = false;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0 || (request.ifr_flags & IFF_UP) == 0)
        return;
    int result = ask_feature(fd, &request, ETHTOOL_GSG, &gathers);
    if (result == 0)
        result = ask_feature(fd, &request, ETHTOOL_GTXCSUM, &sums);
    if (result < 0) {
        findings_add(findings, FINDING_UNKNOWN, "%s does not tell its features: %s (%s)", name,
                     text_errno_meaning(result), text_errno_name(result));
        return;
    }
    if (gathers && sums) {
        findings_add(findings, FINDING_OK, "%s gathers scattered pages and computes checksums", name);
        return;
    }
    struct finding *finding =
        findings_add(findings, FINDING_PROBLEM, "%s has no %s%s%s", name, gathers ? "" : "scatter-gather",
                     gathers || sums ? "" : " and no ", sums ? "" : "checksum offload");
    if (gathers)
        finding_why(finding, "The CPU reads every byte that leaves by it, whatever route carries it.");
    else
        finding_why(finding,
                    "What sendfile and splice send by it the kernel copies after all, without a sign; zero-copy "
                    "sends are copied, some of them reported as not copied.");
    finding_remedy(finding, "ethtool -K %s%s%s, if the device can", name, sums ? "" : " tx on",
                   gathers ? "" : " sg on");
}

static void check_devices(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    CLEANUP_FD int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *devices = fd >= 0 ? if_nameindex() : NULL;
    if (devices == NULL) {
        findings_add(findings, FINDING_UNKNOWN, "the network devices cannot be listed: %s (%s)",
                     text_errno_meaning(errno), text_errno_name(errno));
        return;
    }
    for (const struct if_nameindex *device = devices; device->if_name != NULL; device++)
        check_device(fd, device->if_name, findings);
    if_freenameindex(devices);
}

/* A packet socket (tcpdump, DHCP clients) gets a clone of each packet, and a clone of lent pages is copied (17.2). One
 * that listens to a single protocol other than IP (ETH_P_ALL is 3) sees none of ours. */
static void check_packet_sockets(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    static const char path[] = "/proc/net/packet";
    char line[256];
    unsigned all = 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        if (errno != ENOENT) /* no packet sockets in this kernel */
            cannot_read(findings, path, errno);
        return;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        unsigned protocol;
        if (sscanf(line, "%*s %*u %*u %x", &protocol) == 1 &&
            (protocol == 3 || protocol == 0x800 || protocol == 0x86dd))
            all++;
    }
    fclose(file);
    if (all == 0) {
        findings_add(findings, FINDING_OK, "nobody listens to all packets");
        return;
    }
    struct finding *finding = findings_add(findings, FINDING_PROBLEM, "%u packet socket%s listen%s to all packets", all,
                                           all == 1 ? "" : "s", all == 1 ? "s" : "");
    finding_why(finding, "Memory lent by zero-copy sends is copied for them, and reported as copied.");
    finding_remedy(finding, "End tcpdump and the like while it matters: ss -0 -p names the processes.");
}

/* ---- TCP ------------------------------------------------------------------------------------------------------------
 */

static void check_congestion(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    static const char path[] = "/proc/sys/net/ipv4/tcp_congestion_control";
    char name[32], queue[32] = "";
    int result = read_text(path, name, sizeof name);
    if (result < 0) {
        cannot_read(findings, path, result);
        return;
    }
    read_text("/proc/sys/net/core/default_qdisc", queue, sizeof queue);
    if (strncmp(name, "bbr", 3) != 0) {
        findings_add(findings, FINDING_OK, "TCP's congestion control is %s", name);
        return;
    }
    struct finding *finding =
        findings_add(findings, FINDING_PROBLEM, "TCP's congestion control is %s, which paces by timers", name);
    finding_why(finding,
                "Over local links it makes sendfile several times dearer (.63 s/GiB where cubic takes .05), and "
                "comparisons of routes meaningless.%s%s%s",
                queue[0] != '\0' && strcmp(queue, "fq") != 0 ? " Without the fq queue (it is " : "",
                queue[0] != '\0' && strcmp(queue, "fq") != 0 ? queue : "",
                queue[0] != '\0' && strcmp(queue, "fq") != 0 ? ") also over others." : "");
    finding_remedy(finding, "For one listener: sluice serve --congestion cubic. For all: sysctl "
                            "net.ipv4.tcp_congestion_control=cubic, or bbr with net.core.default_qdisc=fq.");
}

static void check_tls(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    char known[256] = "", path[256];
    struct utsname name;
    read_text("/proc/sys/net/ipv4/tcp_available_ulp", known, sizeof known);
    if (strstr(known, "tls") != NULL) {
        findings_add(findings, FINDING_OK, "the kernel can encrypt TLS (kTLS)");
        return;
    }
    uname(&name);
    bool there = false;
    static const char *const endings[] = {"ko", "ko.xz", "ko.zst", "ko.gz"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        snprintf(path, sizeof path, "/lib/modules/%s/kernel/net/tls/tls.%s", name.release, endings[i]);
        there |= access(path, F_OK) == 0;
    }
    struct finding *finding = findings_add(findings, FINDING_NOTE, "the kernel does not encrypt TLS now (%s)",
                                           there ? "its module is not loaded" : "this kernel has no module for it");
    finding_why(finding,
                "Without kTLS, bytes of TLS connections pass through user space: two copies and the encryption.");
    if (there)
        finding_remedy(finding, "modprobe tls");
}

/* ---- Memory and files
 * ------------------------------------------------------------------------------------------------ */

#define LARGE_PAGE (2u << 20)

/* As the library would have one: settings alone do not tell whether there is any. */
static void check_huge_pages(const struct checks_options *options, struct findings *findings)
{
    (void)options;
    struct sluice_memory *memory;
    if (sluice_memory_new(LARGE_PAGE, &memory) < 0) {
        findings_add(findings, FINDING_UNKNOWN, "there is no memory to try pages of 2 MiB with");
        return;
    }
    enum sluice_pages pages = sluice_memory_pages(memory);
    sluice_memory_release(memory, NULL, 0);
    if (pages > SLUICE_PAGES_PLAIN) {
        findings_add(findings, FINDING_OK, "buffers for much lie on pages of 2 MiB (%s)", sluice_pages_name(pages));
        return;
    }
    struct finding *finding = findings_add(findings, FINDING_NOTE, "there are no huge pages for buffers");
    finding_why(finding, "What is registered with a ring or handed to a device takes 512 entries instead of one.");
    finding_remedy(finding, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or sysctl vm.nr_hugepages=N");
}

/* By trying, with the library's own route. */
static void check_file_systems(const struct checks_options *options, struct findings *findings)
{
    int reflink = sluice_route_by_name("reflink");
    for (size_t i = 0; i < options->directory_count; i++) {
        const struct ladder_options pair = {.directories = &options->directories[i],
                                            .directory_count = 1,
                                            .source = SLUICE_END_FILE,
                                            .sink = SLUICE_END_FILE};
        struct ladder ladder;
        int result = ladder_climb(&pair, &ladder, NULL);
        if (result < 0) {
            findings_add(findings, FINDING_UNKNOWN, "no files can be made in %s: %s (%s)", options->directories[i],
                         text_errno_meaning(result), text_errno_name(result));
            continue;
        }
        bool shares = false;
        for (unsigned r = 0; r < ladder.pairs[0].count; r++) {
            const struct rung *rung = &ladder.pairs[0].rungs[r];
            shares |= (int)rung->plan.route == reflink && rung->tried && rung->result == 0;
        }
        const char *type = ladder.pairs[0].source.file_system;
        if (shares)
            findings_add(findings, FINDING_OK, "copies within %s (%s) can share their extents", options->directories[i],
                         type);
        else
            finding_why(findings_add(findings, FINDING_NOTE, "%s (%s) cannot share extents between files",
                                     options->directories[i], type),
                        "A copy of a file is a copy there; XFS and btrfs make one without copying.");
        ladder_free(&ladder);
    }
}

/* ---- All of them
 * ----------------------------------------------------------------------------------------------------- */

static const struct check {
    const char *name;
    void (*run)(const struct checks_options *options, struct findings *findings);
} checks[] = {
    {"io_uring", check_io_uring},
    {"locked memory", check_memlock},
    {"notifications", check_optmem},
    {"pipes", check_pipes},
    {"network devices", check_devices},
    {"packet sockets", check_packet_sockets},
    {"congestion control", check_congestion},
    {"kernel TLS", check_tls},
    {"huge pages", check_huge_pages},
    {"file systems", check_file_systems},
};

void checks_run(const struct checks_options *options, struct findings *findings)
{
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        findings->check = checks[i].name;
        checks[i].run(options, findings);
    }
}
