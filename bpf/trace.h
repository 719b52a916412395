/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What sluice trace's programs in the kernel (trace.bpf.c) and the collector in user space (app/trace/collect.c) tell
 * each other. Fixed-size types only; compiled for both sides.
 *
 * The unit is a *flow*: one thread moving bytes by one mechanism from one end to another. A flow that takes its bytes
 * out of memory where an earlier call put them (read into a buffer, then send from it; splice into a pipe, then out of
 * it) names the end that they came from and the mechanism that brought them (`first`).
 */
#ifndef SLUICE_BPF_TRACE_H
#define SLUICE_BPF_TRACE_H

#ifndef __bpf__
#include <linux/types.h>
#endif

/* What moved the bytes. The order is an ABI between the two sides only; app/trace/mechanism.c has the names and what
 * each costs. */
enum trace_mechanism {
    TRACE_NONE = 0,
    TRACE_READ,          /* read, readv, pread64, preadv, preadv2, and the ring's IORING_OP_READ* */
    TRACE_WRITE,         /* write, writev, pwrite64, pwritev, pwritev2 */
    TRACE_RECV,          /* recvfrom, recvmsg, recvmmsg; read on a socket too */
    TRACE_RECV_DISCARD,  /* the same with MSG_TRUNC on TCP: nothing is delivered */
    TRACE_RECV_ZEROCOPY, /* getsockopt TCP_ZEROCOPY_RECEIVE: the bytes mapped (those copied count as TRACE_RECV) */
    TRACE_SEND,          /* sendto, sendmsg, sendmmsg; write on a socket too */
    TRACE_SEND_ZEROCOPY, /* the same with MSG_ZEROCOPY where SO_ZEROCOPY is on; IORING_OP_SEND_ZC, SENDMSG_ZC */
    TRACE_SENDFILE,
    TRACE_SPLICE,
    TRACE_VMSPLICE, /* memory into a pipe (out of a pipe into memory is TRACE_READ: it copies) */
    TRACE_TEE,
    TRACE_COPY_FILE_RANGE,
    TRACE_CLONE,         /* ioctl FICLONE, FICLONERANGE: extents shared */
    TRACE_PROCESS_COPY,  /* process_vm_readv, process_vm_writev: memory to memory */
    TRACE_MAP_FAULT,     /* a page of a file mapped by a fault: no copy */
    TRACE_COPY_ON_WRITE, /* a private page copied because somebody wrote to it */
    TRACE_MECHANISM_COUNT
};

/* How the request reached the kernel. */
enum trace_way {
    TRACE_BY_CALL = 0, /* a system call of its own */
    TRACE_BY_RING = 1, /* an operation of io_uring */
};

enum trace_end_kind {
    TRACE_END_NONE = 0,    /* nobody: discarded, or not known */
    TRACE_END_MEMORY,      /* of the process itself */
    TRACE_END_FILE,        /* through the page cache */
    TRACE_END_FILE_DIRECT, /* opened with O_DIRECT */
    TRACE_END_PIPE,
    TRACE_END_TCP,
    TRACE_END_UDP,
    TRACE_END_UNIX,
    TRACE_END_SOCKET, /* of another family */
    TRACE_END_BLOCK,  /* a block device */
    TRACE_END_CHAR,   /* a character device: terminals, /dev/null, /dev/zero */
    TRACE_END_KERNEL, /* eventfd, timerfd, inotify, signalfd; files of proc, sysfs, cgroup: made on the spot, not moved
                       */
    TRACE_END_KIND_COUNT
};

#define TRACE_NAME_SIZE 192 /* the tail of a path, or what is known of it */
#define TRACE_COMM_SIZE 16

enum trace_tls {
    TRACE_TLS_SEND = 1,
    TRACE_TLS_RECEIVE = 2,
    TRACE_TLS_SEND_DEVICE = 4, /* the device does it */
    TRACE_TLS_RECEIVE_DEVICE = 8,
};

/* Identifies an end. Sockets are told apart by addresses and the port that is not ephemeral (taken to be the lower
 * one), so that ten thousand connections to one service are one end, not ten thousand. Unix sockets: the name. */
struct trace_end_key {
    __u8 kind;   /* enum trace_end_kind */
    __u8 family; /* AF_INET, AF_INET6; 0 otherwise */
    __u8 port_is_local;
    __u8 tls;                   /* enum trace_tls: TCP whose bytes the kernel encrypts or decrypts */
    __u32 device;               /* st_dev as the kernel numbers it (major << 20 | minor) */
    __u64 inode;                /* 0 for TCP and UDP */
    __u8 local[16], remote[16]; /* IPv4 in the first four bytes */
    __u32 port;                 /* in host order */
    __u32 net;                  /* inode of the network namespace */
};

/* What a network device can do. The kernel numbers these as it likes. */
enum trace_egress_feature {
    TRACE_EGRESS_SCATTER_GATHER = 1,
    TRACE_EGRESS_CHECKSUM_IPV4 = 2,
    TRACE_EGRESS_CHECKSUM_ALL = 8,
    TRACE_EGRESS_CHECKSUM_IPV6 = 16,
};
#define TRACE_EGRESS_FEATURES 4

struct trace_end_value {
    __u32 id;              /* stands for this end in flows; from 1 up */
    __u32 file_system;     /* magic number (statfs(2)) */
    __u32 egress;          /* index of the device that packets leave by, in that namespace; 0: not known */
    __u32 egress_known;    /* egress_features is set */
    __u64 egress_features; /* TRACE_EGRESS_...; 0 unless egress_known */
    __u32 file_flags;      /* f_flags */
    __u32 character;       /* TRACE_END_CHAR: which device it is (st_rdev), numbered as in the key */
    __u32 unused;
    __u32 name_size;
    char name[TRACE_NAME_SIZE]; /* names from the innermost outwards, each ended by a zero byte: "file\0dir\0" */
};

#define TRACE_END_LOST 0xffffffffu /* an end that found no room in the table */

struct trace_flow_key {
    __u32 pid; /* the process (tgid), as numbered in the tracer's pid namespace */
    __u32 thread;
    __u32 source, sink; /* ids of ends; 0: memory of the process */
    __u8 mechanism;     /* enum trace_mechanism */
    __u8 way;           /* enum trace_way */
    __u8 first;         /* mechanism that brought the bytes from source; TRACE_NONE when source was read by this one */
    __u8 unused;
};

struct trace_flow_value {
    __u64 calls;           /* that moved at least one byte */
    __u64 fruitless;       /* that moved none: EAGAIN, end of file, errors */
    __u64 bytes;           /* returned to the caller as moved */
    __u64 delivered;       /* TRACE_RECV: copied by the kernel into the caller's memory (skb_copy_datagram_iovec).
                              TRACE_COPY_ON_WRITE: of bytes, those surely copied; the others unless nobody shared them */
    __u64 forwarded;       /* of bytes, those that a later flow took up from where this one put them */
    __u64 notified;        /* TRACE_SEND_ZEROCOPY: notifications, in calls */
    __u64 notified_copied; /* of these, with SO_EE_CODE_ZEROCOPY_COPIED, or the ring's usage report saying copied */
    __u64 transitions;     /* system calls of this thread since its last flow, this one included */
    __u64 registered;      /* of bytes, those that a ring moved into or out of memory that it has registered */
};

/* Kernel functions that copy; tier (a) only. */
enum trace_function {
    TRACE_FN_FILEMAP_READ = 0,      /* page cache -> caller */
    TRACE_FN_SHMEM_FILE_READ,       /* tmpfs -> caller */
    TRACE_FN_GENERIC_PERFORM_WRITE, /* caller or pipe -> page cache */
    TRACE_FN_IOMAP_WRITE,           /* the same on XFS */
    TRACE_FN_BTRFS_WRITE,           /* the same on btrfs */
    TRACE_FN_PIPE_READ,
    TRACE_FN_PIPE_WRITE,
    TRACE_FN_TCP_SENDMSG, /* caller -> socket, without what went by reference */
    TRACE_FN_UNIX_SENDMSG,
    TRACE_FN_UDP_SENDMSG,
    TRACE_FN_DATAGRAM_READ,     /* skb_copy_datagram_iter: socket -> caller */
    TRACE_FN_SKB_COPY_UBUFS,    /* pages lent with MSG_ZEROCOPY, copied after all */
    TRACE_FN_SKB_COPY_AND_CSUM, /* a device without scatter-gather or checksum offload */
    TRACE_FN_SKB_COPY_BITS,     /* linearised */
    TRACE_FN_COPY_ON_WRITE,     /* private pages: wp_page_copy, finish_fault */
    TRACE_FN_PIPE_TO_USER,      /* vmsplice out of a pipe */
    TRACE_FN_TLS_SENDMSG,       /* caller -> record, before it is encrypted */
    TRACE_FUNCTION_COUNT
};

/* Tier (a): what a function copied, by the flow in whose course it ran. flow.pid 0: outside any (softirq, a kernel
 * thread, the ring's workers): listed as unattributed. */
struct trace_copy_key {
    struct trace_flow_key flow;
    __u32 function; /* enum trace_function */
};

struct trace_copy_value {
    __u64 calls;
    __u64 bytes;
};

/* Life of the traced processes, by the ring buffer `events`. */
enum trace_event_kind {
    TRACE_EVENT_EXEC,
    TRACE_EVENT_FORK,
    TRACE_EVENT_EXIT,
};

struct trace_event {
    __u32 kind;
    __u32 pid, parent;
    __u32 exit_code; /* as of wait(2) */
    __u64 cpu_ns;    /* TRACE_EVENT_EXIT: user + system of all its life */
    char comm[TRACE_COMM_SIZE];
};

/* Whatever could not be recorded, per CPU. None of it is silent: every report prints those that are not zero. */
struct trace_lost {
    __u64 flows; /* bytes of calls whose flow found no room */
    __u64 flow_calls;
    __u64 copies;   /* bytes of copies that found no room */
    __u64 ends;     /* ends that found no room: their flows name no end */
    __u64 events;   /* the ring buffer was full */
    __u64 threads;  /* no memory for a thread's state */
    __u64 foreign;  /* system calls of 32-bit programs: their numbers mean something else */
    __u64 messages; /* messages beyond the first 64 of one sendmmsg or recvmmsg: their bytes are not counted */
    __u64 missed; /* times that the kernel ran no program, as the same one was at work on that CPU: it says how often */
};

/* What a system call is to us. User space fills the table of numbers (they differ between machines). */
enum trace_call {
    TRACE_CALL_OTHER = 0, /* counted as a transition, nothing more */
    TRACE_CALL_READ,
    TRACE_CALL_READV,
    TRACE_CALL_WRITE,
    TRACE_CALL_WRITEV,
    TRACE_CALL_RECVFROM,
    TRACE_CALL_RECVMSG,
    TRACE_CALL_RECVMMSG,
    TRACE_CALL_SENDTO,
    TRACE_CALL_SENDMSG,
    TRACE_CALL_SENDMMSG,
    TRACE_CALL_SENDFILE,
    TRACE_CALL_SPLICE,
    TRACE_CALL_VMSPLICE,
    TRACE_CALL_TEE,
    TRACE_CALL_COPY_FILE_RANGE,
    TRACE_CALL_IOCTL,
    TRACE_CALL_PROCESS_VM,
    TRACE_CALL_GETSOCKOPT,
    TRACE_CALL_COUNT
};

#define TRACE_CALL_NUMBERS 512 /* system calls are numbered below this */
#define TRACE_RING_OPCODES 128 /* io_uring's operations, too */

/* What is traced; set before the programs are attached (read-only data of the programs). */
enum trace_scope {
    TRACE_SCOPE_PROCESSES = 0, /* those in the map `targets`, and their children */
    TRACE_SCOPE_ALL,
    TRACE_SCOPE_COMM,   /* processes whose name is trace_comm, and their children */
    TRACE_SCOPE_CGROUP, /* of the cgroup (v2) with the id trace_cgroup, or below it */
};

#endif
