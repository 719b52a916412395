/* SPDX-License-Identifier: MIT */
#include "file_systems.h"
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static bool run_program(char *const arguments[])
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execvp(arguments[0], arguments);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* A private root under which nothing mounted here outlives the process. */
static const char *private_root(void)
{
    static bool made;
    if (made)
        return NULL;
    if (geteuid() != 0)
        return "loop mounts are for root; run the tests as root";
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return "no mount namespace of its own; allow CAP_SYS_ADMIN";
    if (mount("tmpfs", "/mnt", "tmpfs", 0, "size=1g,mode=700") < 0)
        return "no tmpfs over /mnt; allow CAP_SYS_ADMIN";
    made = true;
    return NULL;
}

/* Attach image to a free loop device, which is freed again when it is unmounted. */
static int attach(int image, char *ret_device, size_t size)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    for (int tries = 0; control >= 0 && tries < 10; tries++) {
        struct loop_config config = {.fd = (unsigned)image, .info.lo_flags = LO_FLAGS_AUTOCLEAR};
        snprintf(ret_device, size, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
        int loop = open(ret_device, O_RDWR | O_CLOEXEC);
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) == 0) {
            close(control);
            return loop;
        }
        close(loop); /* somebody else took it */
    }
    close(control);
    return -1;
}

static const char *mount_image(const char *type, const char *image_path, const char *directory, off_t size)
{
    char program[20], device[40];
    char *arguments[] = {program, strcmp(type, "ext4") == 0 ? (char *)"-F" : (char *)"-f", (char *)image_path, NULL};
    snprintf(program, sizeof program, "mkfs.%s", type);
    int image = open(image_path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (image < 0 || ftruncate(image, size) < 0)
        return "no room for a disk image on tmpfs; it takes up to 300 MB";
    if (!run_program(arguments))
        return "mkfs failed; install e2fsprogs, xfsprogs and btrfs-progs";
    int loop = attach(image, device, sizeof device);
    close(image);
    if (loop < 0)
        return "no loop device; modprobe loop, or allow /dev/loop-control";
    mkdir(directory, 0700);
    int result = mount(device, directory, type, 0, NULL);
    close(loop);
    return result < 0 ? "the kernel does not mount this file system; modprobe it" : NULL;
}

const char *file_system_directory(const char *type, const char **ret_reason)
{
    static struct {
        char type[8], directory[40];
    } made[4];
    size_t i = 0;
    while (i < sizeof made / sizeof *made && made[i].type[0] != '\0' && strcmp(made[i].type, type) != 0)
        i++;
    if (i < sizeof made / sizeof *made && made[i].type[0] != '\0')
        return made[i].directory;
    if (i == sizeof made / sizeof *made || strlen(type) >= sizeof made[i].type) {
        *ret_reason = "a file system that no test uses; add it to tests/unit/lib/file_systems.c";
        return NULL;
    }
    const char *given = getenv("SLUICE_TEST_FILE_SYSTEMS");
    if (given != NULL) {
        snprintf(made[i].directory, sizeof made[i].directory, "%s/%s", given, type);
        snprintf(made[i].type, sizeof made[i].type, "%s", type);
        return made[i].directory;
    }
    if (strcmp(type, "tmpfs") == 0 && geteuid() != 0)
        return "/dev/shm";
    const char *reason = private_root();
    snprintf(made[i].directory, sizeof made[i].directory, "/mnt/%s", type);
    if (reason == NULL && strcmp(type, "tmpfs") == 0) {
        mkdir(made[i].directory, 0700);
    } else if (reason == NULL) {
        char image[48];
        snprintf(image, sizeof image, "%s.image", made[i].directory);
        reason = mount_image(type, image, made[i].directory, 300 << 20);
    }
    if (reason != NULL) {
        *ret_reason = reason;
        return NULL;
    }
    snprintf(made[i].type, sizeof made[i].type, "%s", type);
    return made[i].directory;
}
