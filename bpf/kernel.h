/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The few members of kernel structures that trace.bpf.c reads. CO-RE finds their real offsets on the running kernel
 * (preserve_access_index), so these declarations need name a member and its type only, and one program serves all
 * kernels; a generated vmlinux.h would tie the build to the machine that it ran on.
 */
#ifndef SLUICE_BPF_KERNEL_H
#define SLUICE_BPF_KERNEL_H

#define __VMLINUX_H__ /* tells bpf_tracing.h to use the kernel's names of registers, not user space's */

#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
    unsigned long r9, r8, r10, dx, si, di, orig_ax, ax, ip, sp, bp, cx;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
    __u64 regs[31], sp, pc, pstate;
};
struct pt_regs {
    struct user_pt_regs user_regs;
    __u64 orig_x0;
    __s32 syscallno;
};
#else
#error "sluice trace knows the registers of x86-64 and arm64; add this machine's to bpf/kernel.h"
#endif

struct qstr {
    const unsigned char *name;
};

struct super_block {
    __u32 s_dev;
    unsigned long s_magic;
};

struct inode {
    unsigned short i_mode;
    unsigned long i_ino;
    struct super_block *i_sb;
    __u32 i_rdev;
    long long i_size;
};

struct dentry {
    struct dentry *d_parent;
    struct qstr d_name;
};

struct path {
    struct dentry *dentry;
};

struct file {
    struct inode *f_inode;
    unsigned int f_flags;
    unsigned int f_mode;
    struct path f_path;
    void *private_data;
};

struct fdtable {
    unsigned int max_fds;
    struct file **fd;
};

struct files_struct {
    struct fdtable *fdt;
};

#if defined(__TARGET_ARCH_x86)
struct thread_info {
    __u32 status;
};
#else
struct thread_info {
    __u64 preempt_count;
};
#endif

struct pid_namespace;

struct upid {
    int nr;
    struct pid_namespace *ns;
};

struct pid {
    unsigned int level;
    struct upid numbers[1]; /* one for each namespace from the first (0) to its own (level) */
};

struct signal_struct {
    int nr_threads;
    __u64 sum_sched_runtime;
};

struct sched_entity {
    __u64 sum_exec_runtime;
};

struct task_struct {
    struct thread_info thread_info;
    int pid, tgid;
    int exit_code;
    struct sched_entity se;
    unsigned int flags;
    struct task_struct *group_leader;
    struct pid *thread_pid;
    struct files_struct *files;
    struct signal_struct *signal;
    char comm[16];
};

struct linux_binprm;

struct in6_addr {
    unsigned char in6_u[16];
};

struct ns_common {
    unsigned int inum;
};

struct net {
    struct ns_common ns;
};

typedef struct {
    struct net *net;
} possible_net_t;

struct proto;

struct sock_common {
    __be32 skc_daddr, skc_rcv_saddr;
    __be16 skc_dport;
    __u16 skc_num;
    unsigned short skc_family;
    possible_net_t skc_net;
    struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
    unsigned long skc_flags;
    struct proto *skc_prot;
};

struct net_device {
    __u64 features;
    int ifindex;
};

struct dst_entry {
    struct net_device *dev;
};

struct sock {
    struct sock_common __sk_common;
    __u16 sk_protocol, sk_type;
    struct dst_entry *sk_dst_cache;
};

struct tcp_ulp_ops {
    char name[16];
};

struct inet_connection_sock {
    const struct tcp_ulp_ops *icsk_ulp_ops;
    void *icsk_ulp_data;
};

struct tls_context {
    __u8 tx_conf : 3, rx_conf : 3;
};

enum sock_flags { SOCK_ZEROCOPY = 18 }; /* the value is relocated: it differs between kernels */

struct socket {
    struct sock *sk;
};

struct unix_address {
    int len;
};

struct unix_sock {
    struct unix_address *addr;
    struct sock *peer;
};

struct sk_buff {
    unsigned int len, data_len, end;
    unsigned char *head;
};

struct skb_shared_info {
    void *destructor_arg;
};

struct kiocb;
struct page;

struct vm_fault {
    struct page *page, *cow_page;
};

/* The values are relocated: they differ between kernels, and ITER_PIPE is gone since 6.5. */
enum iter_type { ITER_UBUF, ITER_DISCARD, ITER_PIPE };

struct iov_iter {
    __u8 iter_type;
    unsigned long count;
    void *ubuf;
};

struct msghdr {
    struct iov_iter msg_iter;
    unsigned int msg_flags;
};

struct vm_area_struct {
    unsigned long vm_start, vm_end, vm_flags;
    struct file *vm_file;
};

struct io_cqe {
    __u64 user_data;
    __s32 res;
    __u32 flags;
};

struct io_uring_cqe {
    __u64 user_data;
    __s32 res;
    __u32 flags;
};

/* A ring's fixed files: an array of pointers until Linux 6.12, nodes since; the lowest bits of a pointer are flags.
 * (A type that a kernel lacks, libbpf 1.1 looks for in modules, which takes more than CAP_BPF and CAP_PERFMON: types
 * that came or went are to be avoided; members are no trouble.) */
struct io_rsrc_node {
    unsigned long file_ptr;
};

struct io_file_table {
    unsigned long *files;
};

struct io_ring_ctx {
    struct io_file_table file_table;
};

struct io_wq_work {
    int unused_;
};

struct io_kiocb {
    struct io_wq_work work;
    struct file *file;
    __u8 opcode;
    struct io_cqe cqe;
    struct io_ring_ctx *ctx;
    void *async_data;
};

struct io_async_msghdr {
    struct msghdr msg;
};

struct io_splice {
    int splice_fd_in;
    unsigned int flags;
    struct io_rsrc_node *rsrc_node;
};

struct io_rw {
    __u64 addr;
};

struct io_sr_msg {
    void *buf;
    __u16 flags;
};

struct io_notif_data {
    bool zc_report;
};

#pragma clang attribute pop

#endif
