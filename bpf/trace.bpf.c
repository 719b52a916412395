/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * sluice trace in the kernel: who moves how many bytes from where to where, by which mechanism.
 *
 * One program on the way out of system calls does most of the work. There the arguments are still in the saved
 * registers (the kernel changes only the one that returns the result), so that the way in needs no program: half the
 * cost. What a call was about (the descriptors) can in theory have changed by then, if another thread closed and
 * reopened a descriptor during the call; this is not seen.
 *
 * Invariants
 *   - A thread that is traced has a state (task storage); having one is what "traced" means. It is made when the thread
 *     is first seen in scope, or by its parent at fork.
 *   - What a tracepoint or a function inside a call reports (bytes delivered, bytes copied) collects in the thread's
 *     state, and is entered with the call's flow at its end. So it needs no map, and cannot be entered twice. A ring's
 *     worker works for a request whose end another thread reports: what it copies collects with the request.
 *   - Nothing is dropped in silence: see struct trace_lost.
 *
 * Functions that are not static are verified once, on their own, and not again in each place that calls them: the
 * verifier's limit on what it will look at is far off that way.
 */
#include "kernel.h"
#include <linux/bpf.h>

#include "trace.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define MSG_TRUNC 0x20
#define MSG_ERRQUEUE 0x2000
#define MSG_ZEROCOPY 0x4000000
#define FMODE_WRITE 2
#define VM_SHARED 8
#define PF_KTHREAD 0x200000
#define PF_IO_WORKER 0x10
#define ANON_INODE_MAGIC 0x09041934
#define PROC_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define CGROUP_MAGIC 0x27e0eb
#define CGROUP2_MAGIC 0x63677270
#define PIPEFS_MAGIC 0x50495045
#define SOCKFS_MAGIC 0x534f434b
#define EEXIST 17
#if defined(__TARGET_ARCH_x86)
#define O_DIRECT 040000
#else
#define O_DIRECT 0200000
#endif

/* ---- What user space says before the start ---- */

const volatile __u32 trace_scope = TRACE_SCOPE_PROCESSES;
const volatile char trace_comm[TRACE_COMM_SIZE] = {};
const volatile __u64 trace_cgroup = 0;
const volatile __u32 trace_cgroup_level = 0;
const volatile __u32 trace_self = 0; /* our own pid, as we know it: never traced */
const volatile __u32 trace_page_size = 4096;
const volatile __u8 trace_calls[TRACE_CALL_NUMBERS] = {}; /* enum trace_call by system call number */
const volatile __u8 trace_ring[TRACE_RING_OPCODES] = {};  /* enum trace_mechanism by io_uring opcode */
/* Which bit of struct net_device's features is which: an enumeration without a name, which CO-RE cannot find. */
const volatile struct {
    __u32 bit, feature; /* enum trace_egress_feature */
} trace_features[TRACE_EGRESS_FEATURES] = {};
const volatile bool trace_features_known = false;
const volatile bool trace_functions = false; /* tier (a) programs are attached */

/* ---- Maps ---- */

#define RANGES 8
#define DESCRIPTORS 128
#define SHARED_RANGE_MIN 4096 /* bytes: telling other threads of a range costs as much as copying this many */

/* Where a call put bytes into memory, so that a later call that takes them from there can name their source. */
struct range {
    __u64 start, end;
    __u32 source;
    __u32 thread;
    __u8 mechanism, way, first, unused;
    __u32 window; /* trace_window of then */
};

struct descriptor {
    struct file *file;
    struct inode *inode;
    unsigned long number; /* i_ino: structures of closed sockets are used again at the same address */
    __u64 tcp, protocol;  /* struct sock and its sk_prot; 0: it is no TCP socket */
    __u32 end;
    __u8 kind;
};

/* struct msghdr of 64-bit user space (recvmsg(2)). */
struct message {
    __u64 name;
    __u32 name_size, unused;
    __u64 vectors, vector_count, control, control_size;
    __u32 flags, unused2;
};

struct thread_state {
    __u32 pid, thread; /* in the tracer's pid namespace */
    __u64 transitions;
    __u64 delivered;
    bool call_entered; /* by on_call, so that on_call_left_out need not */
    __u32 pieces;      /* whether this call was entered already */
    __u64 unentered;   /* bytes that it moved and that are not entered yet */
    bool registered;   /* in memory that a ring has registered */
    __u64 request;     /* of a ring, by a pointer, that this worker is busy with; 0: it is no worker */
    __u32 newest;      /* of ranges */
    struct range ranges[RANGES];
    struct descriptor descriptors[DESCRIPTORS];
    struct trace_flow_key lent;  /* last flow with MSG_ZEROCOPY */
    struct trace_flow_key fault; /* last flow of a page fault */
    bool fault_copied;           /* and its page was counted */
    struct trace_end_key key;    /* scratch: too large for the stack */
    struct trace_end_value value;
    struct message message;
    __u64 referred;      /* bytes of this call that went by reference */
    __u64 datagram_room; /* before a datagram is received: room for it, plus one */
    __u64 copied[TRACE_FUNCTION_COUNT], copies[TRACE_FUNCTION_COUNT];
};
/* Since Linux 6.19 storage comes from the allocator's own caches, none of which has larger pieces (kmalloc_nolock). */
_Static_assert(sizeof(struct thread_state) <= 8192 - 128, "with what the kernel puts before it, at most 8 KiB");

struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, int);
    __type(value, struct thread_state);
} threads SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16384);
    __type(key, __u32); /* process */
    __type(value, __u32);
} targets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(max_entries, 1); /* user space says */
    __type(key, struct trace_flow_key);
    __type(value, struct trace_flow_value);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(max_entries, 4096);
    __type(key, struct trace_copy_key);
    __type(value, struct trace_copy_value);
} copies SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1); /* user space says */
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct trace_end_key);
    __type(value, struct trace_end_value);
} ends SEC(".maps");

/* Ranges of processes with several threads: one thread reads, another sends (Node, nginx with aio threads). */
struct memory_key {
    __u64 start;
    __u32 pid, unused;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct memory_key);
    __type(value, struct range);
} memory SEC(".maps");

/* What was put into a pipe last by splice or tee, and by whom. */
struct pipe_fill {
    __u32 pid, source, thread, window;
    __u8 mechanism, way, first, unused;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, __u32); /* the pipe's end */
    __type(value, struct pipe_fill);
} pipes SEC(".maps");

/* A request of io_uring that is not over when it first completes. */
struct ring_key {
    __u64 ring, user_data;
};

/* Receiving requests, by a pointer: multishot ones complete again and again without saying which they are. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct ring_key);
    __type(value, __u64);
} receiving SEC(".maps");

/* Flows of SEND_ZC requests whose notification is outstanding; TRACE_NONE: it sent nothing. */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, struct ring_key);
    __type(value, struct trace_flow_key);
} lent_by_ring SEC(".maps");

/* Tier (a). What a ring's workers have copied for a request that is not complete, by a pointer to it. */
struct work {
    __u64 copied[TRACE_FUNCTION_COUNT], copies[TRACE_FUNCTION_COUNT];
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 4096);
    __type(key, __u64);
    __type(value, struct work);
} works SEC(".maps");

/* Tier (a). Pages lent with MSG_ZEROCOPY: by whose socket (the key is the kernel's struct ubuf_info)? */
struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, __u64);
    __type(value, __u64);
} loans SEC(".maps");

/* What the pages that a socket lent cost after all: known is its flow, or pending until its first call ends. */
struct lender {
    struct trace_flow_key flow;
    __u32 unused;
    __u64 pending;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 16384);
    __type(key, __u64);
    __type(value, struct lender);
} lenders SEC(".maps");

/* The buffer that is being copied, and its lender, between the two programs of skb_copy_ubufs. */
struct unlending {
    __u64 buffer, lender;
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct unlending);
} unlendings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct trace_lost);
} lost SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(max_entries, 4096);
    __type(key, __u32);   /* process */
    __type(value, __u64); /* transitions of threads that ended, or that no flow has taken over */
} transitions SEC(".maps");

__u32 end_count = 0;

/* Counts the times that counting began anew (--sample). What memory and pipes held before is not what they hold now:
 * they may have been filled again unseen. */
volatile __u32 trace_window = 0;

/* What a counter begins with; not on the stack, of which all functions together have 512 bytes. */
const volatile struct trace_flow_value no_flow = {};
static const volatile struct work no_work = {};

#define LOST(member, amount)                                                                                           \
    do {                                                                                                               \
        __u32 zero_ = 0;                                                                                               \
        struct trace_lost *lost_ = bpf_map_lookup_elem(&lost, &zero_);                                                 \
        if (lost_)                                                                                                     \
            lost_->member += (amount);                                                                                 \
    } while (0)

/* ---- In which context ---- */

/* Of the count of preemption. 0x200 and above in its second byte: bottom halves are off, which is still the caller's
 * work. */
#define PREEMPTION_OFF 0xff
#define SERVING_SOFTIRQ 0x100
#define IN_INTERRUPT 0xff0000 /* hard interrupt, NMI */

#if defined(__TARGET_ARCH_x86)
/* The count is a variable of each CPU, or a member of one (struct pcpu_hot), and user space says how far it lies from
 * another that every kernel has. A weak __ksym for each of the two, and CO-RE, would be simpler, but what a kernel
 * lacks is looked for in modules by libbpf 1.1, which takes more than CAP_BPF and CAP_PERFMON. */
extern const unsigned long this_cpu_off __ksym __weak;
const volatile __s64 trace_preempt_distance = 0; /* from this_cpu_off; 0: not known */
#endif

static __always_inline int preemption_count(struct task_struct *task)
{
    int count = PREEMPTION_OFF; /* not known */
#if defined(__TARGET_ARCH_x86)
    if (&this_cpu_off && trace_preempt_distance) {
        const char *at = (const char *)bpf_this_cpu_ptr(&this_cpu_off) + trace_preempt_distance;
        bpf_probe_read_kernel(&count, sizeof count, at);
    }
#else
    count = (int)task->thread_info.preempt_count;
#endif
    return count;
}

static __always_inline bool in_foreign_context(struct task_struct *task)
{
    return preemption_count(task) & (SERVING_SOFTIRQ | IN_INTERRUPT);
}

/* ---- Who is traced ---- */

static __always_inline bool comm_matches(const char comm[TRACE_COMM_SIZE])
{
    for (int i = 0; i < TRACE_COMM_SIZE; i++) {
        if (comm[i] != trace_comm[i])
            return false;
        if (comm[i] == 0)
            break;
    }
    return true;
}

/* The tracer's pid namespace, whose numbers it and its user know: how deep it lies below the first one, and which it is
 * (a pointer of the kernel's, compared only). */
__u32 trace_namespace_level = 0;
__u64 trace_namespace = 0;

/* Run once by the tracer itself, before the others are attached. */
SEC("raw_tp")
int find_namespace(void *context)
{
    struct pid *pid = BPF_CORE_READ(bpf_get_current_task_btf(), thread_pid);
    __u32 level = BPF_CORE_READ(pid, level);
    struct upid *number = (void *)&pid->numbers + level * bpf_core_type_size(struct upid);
    trace_namespace = (__u64)BPF_CORE_READ(number, ns);
    trace_namespace_level = level;
    return 0;
}

/* 0: not to be seen from the tracer's namespace, so it cannot be meant. */
static __always_inline __u32 number_of(struct pid *pid)
{
    __u32 level = trace_namespace_level;
    if (BPF_CORE_READ(pid, level) < level)
        return 0;
    struct upid *number = (void *)&pid->numbers + level * bpf_core_type_size(struct upid);
    return (__u64)BPF_CORE_READ(number, ns) == trace_namespace ? (__u32)BPF_CORE_READ(number, nr) : 0;
}

static __always_inline __u32 process_of(struct task_struct *task)
{
    return trace_namespace_level == 0 ? (__u32)task->tgid : number_of(BPF_CORE_READ(task, group_leader, thread_pid));
}

static __always_inline __u32 thread_of(struct task_struct *task)
{
    return trace_namespace_level == 0 ? (__u32)task->pid : number_of(BPF_CORE_READ(task, thread_pid));
}

static __always_inline bool in_scope(__u32 pid)
{
    if (pid == 0 || pid == trace_self)
        return false;
    if (trace_scope == TRACE_SCOPE_ALL)
        return true;
    if (trace_scope == TRACE_SCOPE_CGROUP)
        return bpf_get_current_ancestor_cgroup_id((int)trace_cgroup_level) == trace_cgroup;
    if (bpf_map_lookup_elem(&targets, &pid))
        return true;
    if (trace_scope == TRACE_SCOPE_COMM) {
        char comm[TRACE_COMM_SIZE];
        if (bpf_get_current_comm(comm, sizeof comm) == 0 && comm_matches(comm)) {
            bpf_map_update_elem(&targets, &pid, &pid, BPF_ANY);
            return true;
        }
    }
    return false;
}

static __always_inline struct thread_state *state_of_current(struct task_struct *task)
{
    struct thread_state *state = bpf_task_storage_get(&threads, task, 0, 0);
    if (state)
        return state;
    __u32 pid = process_of(task);
    if (!in_scope(pid))
        return NULL;
    state = bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!state) {
        LOST(threads, 1);
        return NULL;
    }
    state->pid = pid;
    state->thread = thread_of(task);
    return state;
}

/* ---- Ends ---- */

/* Both are functions of their own because each look through a task that the verifier trusts has it search all types of
 * the kernel, one by one (btf_nested_type_is_trusted; half of the time to start where they were inlined). */
__noinline __u64 file_of(__u32 fd)
{
    struct files_struct *files = bpf_get_current_task_btf()->files;
    if (!files)
        return 0;
    struct fdtable *table = files->fdt;
    if (!table || fd >= table->max_fds)
        return 0;
    __u64 file = 0;
    bpf_probe_read_kernel(&file, sizeof file, table->fd + fd);
    return file;
}

__noinline int threads_of_current(void)
{
    return bpf_get_current_task_btf()->signal->nr_threads;
}

static __always_inline struct sock *sock_of(struct file *file)
{
    struct socket *socket = BPF_CORE_READ(file, private_data);
    return BPF_CORE_READ(socket, sk);
}

/* Which directions of a TCP socket the kernel encrypts (TLS_SW, TLS_HW in include/net/tls.h). */
static __always_inline __u8 tls_of(struct inet_connection_sock *sk)
{
    char name[4] = {};
    const struct tcp_ulp_ops *ulp = BPF_CORE_READ(sk, icsk_ulp_ops);
    if (!ulp || !bpf_core_type_exists(struct tls_context))
        return 0;
    bpf_core_read(name, sizeof name, &ulp->name);
    if (name[0] != 't' || name[1] != 'l' || name[2] != 's' || name[3] != 0)
        return 0;
    struct tls_context *context = BPF_CORE_READ(sk, icsk_ulp_data);
    __u64 send = BPF_CORE_READ_BITFIELD_PROBED(context, tx_conf);
    __u64 receive = BPF_CORE_READ_BITFIELD_PROBED(context, rx_conf);
    return (send == 1  ? TRACE_TLS_SEND
            : send > 1 ? TRACE_TLS_SEND_DEVICE
                       : 0) |
           (receive == 1  ? TRACE_TLS_RECEIVE
            : receive > 1 ? TRACE_TLS_RECEIVE_DEVICE
                          : 0);
}

static __always_inline void describe_inet(struct trace_end_key *key, struct trace_end_value *value, struct sock *sk)
{
    struct sock_common *common = &sk->__sk_common;
    if (key->family == AF_INET) {
        __be32 address = BPF_CORE_READ(common, skc_rcv_saddr);
        __builtin_memcpy(key->local, &address, 4);
        address = BPF_CORE_READ(common, skc_daddr);
        __builtin_memcpy(key->remote, &address, 4);
    } else {
        bpf_core_read(&key->local, sizeof key->local, &common->skc_v6_rcv_saddr);
        bpf_core_read(&key->remote, sizeof key->remote, &common->skc_v6_daddr);
    }
    __u32 local = BPF_CORE_READ(common, skc_num);
    __u32 remote = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
    key->port_is_local = remote == 0 || local <= remote;
    key->port = key->port_is_local ? local : remote;
    key->net = BPF_CORE_READ(common, skc_net.net, ns.inum);
    if (key->kind == TRACE_END_TCP)
        key->tls = tls_of((struct inet_connection_sock *)sk);
    struct net_device *device = BPF_CORE_READ(sk, sk_dst_cache, dev);
    if (device) {
        value->egress = (__u32)BPF_CORE_READ(device, ifindex);
        __u64 features = BPF_CORE_READ(device, features);
        for (int i = 0; i < TRACE_EGRESS_FEATURES; i++)
            if (features >> (trace_features[i].bit & 63) & 1)
                value->egress_features |= trace_features[i].feature;
        value->egress_known = trace_features_known;
    }
}

static __always_inline void describe_socket(struct trace_end_key *key, struct trace_end_value *value, struct file *file)
{
    struct sock *sk = sock_of(file);
    if (!sk)
        return;
    unsigned short family = BPF_CORE_READ(sk, __sk_common.skc_family);
    __u16 protocol = BPF_CORE_READ(sk, sk_protocol);
    key->family = (__u8)family;
    if (family == AF_INET || family == AF_INET6) {
        key->kind = protocol == IPPROTO_TCP   ? TRACE_END_TCP
                    : protocol == IPPROTO_UDP ? TRACE_END_UDP
                                              : TRACE_END_SOCKET;
        if (key->kind != TRACE_END_SOCKET)
            describe_inet(key, value, sk);
    } else if (family == AF_UNIX) {
        key->kind = TRACE_END_UNIX;
        key->family = 0;
        /* Accepted sockets share their listener's name; the connecting side has its peer's. The structure's address
         * stands for the name, and never leaves this program but as an opaque number. */
        struct unix_sock *unix_socket = (struct unix_sock *)sk;
        struct unix_address *name = BPF_CORE_READ(unix_socket, addr);
        if (!name) {
            struct unix_sock *peer = (struct unix_sock *)BPF_CORE_READ(unix_socket, peer);
            if (peer)
                name = BPF_CORE_READ(peer, addr);
        }
        if (name) {
            key->inode = (__u64)name;
            /* struct sockaddr_un follows the length: two bytes of family, then the name (unix(7)). */
            int length = BPF_CORE_READ(name, len);
            if (length > 2) {
                const char *text = (const char *)name + bpf_core_type_size(struct unix_address) + 2;
                __u32 size = (__u32)length - 2;
                if (size > 107)
                    size = 107;
                bpf_probe_read_kernel(value->name, size & 127, text);
                value->name_size = size;
            }
        }
    } else {
        key->kind = TRACE_END_SOCKET;
    }
}

static __always_inline void name_file(struct trace_end_value *value, struct file *file)
{
    struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
    __u32 used = 0;
    for (int depth = 0; depth < 16; depth++) {
        struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
        if (!dentry || dentry == parent || used > TRACE_NAME_SIZE - 64)
            break;
        long length = bpf_probe_read_kernel_str(&value->name[used & 255], 64, BPF_CORE_READ(dentry, d_name.name));
        if (length <= 0)
            break;
        used += (__u32)length & 63;
        if (length >= 64)
            used += 64;
        dentry = parent;
    }
    value->name_size = used;
}

/* Fill state->key and state->value. */
static __always_inline void describe(struct thread_state *state, struct file *file, struct inode *inode)
{
    struct trace_end_key *key = &state->key;
    struct trace_end_value *value = &state->value;
    __builtin_memset(key, 0, sizeof *key);
    __builtin_memset(value, 0, sizeof *value);
    struct super_block *super = BPF_CORE_READ(inode, i_sb);
    unsigned short mode = BPF_CORE_READ(inode, i_mode);
    unsigned long magic = BPF_CORE_READ(super, s_magic);
    key->inode = BPF_CORE_READ(inode, i_ino);
    key->device = BPF_CORE_READ(super, s_dev);
    value->file_system = (__u32)magic;
    value->file_flags = BPF_CORE_READ(file, f_flags);
    if (magic == ANON_INODE_MAGIC)
        return; /* waking up through an eventfd or a timerfd is no transport of data */
    switch (mode & S_IFMT) {
    case S_IFSOCK:
        key->device = 0;
        describe_socket(key, value, file);
        if (key->kind == TRACE_END_TCP || key->kind == TRACE_END_UDP)
            key->inode = 0;
        return;
    case S_IFIFO:
        key->kind = TRACE_END_PIPE;
        if (magic != PIPEFS_MAGIC)
            name_file(value, file);
        return;
    case S_IFBLK:
        key->kind = value->file_flags & O_DIRECT ? TRACE_END_FILE_DIRECT : TRACE_END_BLOCK;
        break;
    case S_IFCHR:
        key->kind = TRACE_END_CHAR;
        value->character = BPF_CORE_READ(inode, i_rdev);
        break;
    case S_IFREG:
        if (magic == PROC_MAGIC || magic == SYSFS_MAGIC || magic == CGROUP_MAGIC || magic == CGROUP2_MAGIC)
            key->kind = TRACE_END_KERNEL;
        else
            key->kind = value->file_flags & O_DIRECT ? TRACE_END_FILE_DIRECT : TRACE_END_FILE;
        break;
    default:
        key->kind = TRACE_END_KERNEL;
        return;
    }
    name_file(value, file);
}

/* The number that stands for this end, from now on; TRACE_END_LOST if there is no room. */
static __always_inline __u32 end_number(struct thread_state *state)
{
    struct trace_end_value *known = bpf_map_lookup_elem(&ends, &state->key);
    if (known)
        return known->id;
    state->value.id = __sync_fetch_and_add(&end_count, 1) + 1;
    long error = bpf_map_update_elem(&ends, &state->key, &state->value, BPF_NOEXIST);
    if (error == 0)
        return state->value.id;
    known = bpf_map_lookup_elem(&ends, &state->key); /* another CPU was faster */
    if (known)
        return known->id;
    LOST(ends, 1);
    return TRACE_END_LOST;
}

struct end {
    __u32 id;
    __u8 kind;
};

/* What carries out the socket's calls. The kernel's TLS takes it over, one direction after the other, whoever asks for
 * that: another thread, another process (update_sk_prot, net/tls/tls_main.c). */
static __always_inline __u64 protocol_of(__u64 sk)
{
    return sk ? (__u64)BPF_CORE_READ((struct sock *)sk, __sk_common.skc_prot) : 0;
}

/* file is a pointer of the kernel's, which functions that are verified on their own cannot take as such. */
__noinline int end_of_file(struct thread_state *state, __u64 address, __u32 fd, struct end *ret_end)
{
    struct file *file = (struct file *)address;
    if (!state || !ret_end)
        return 0;
    ret_end->id = 0;
    ret_end->kind = TRACE_END_NONE;
    if (!file)
        return 0;
    struct inode *inode = BPF_CORE_READ(file, f_inode);
    unsigned long number = BPF_CORE_READ(inode, i_ino);
    struct descriptor *cached = &state->descriptors[fd % DESCRIPTORS];
    if (cached->file != file || cached->inode != inode || cached->number != number ||
        cached->protocol != protocol_of(cached->tcp)) {
        /* Until Linux 6.4 what a function like this one is given must not be a map's key: ask for it again. */
        struct thread_state *mine = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
        if (!mine)
            return 0;
        bool is_socket = (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFSOCK;
        __u64 sk = is_socket ? (__u64)sock_of(file) : 0, protocol = protocol_of(sk); /* before it is looked at */
        describe(mine, file, inode);
        cached->end = mine->key.kind == TRACE_END_NONE ? 0 : end_number(mine);
        cached->kind = mine->key.kind;
        cached->file = file;
        cached->inode = inode;
        cached->number = number;
        cached->tcp = mine->key.kind == TRACE_END_TCP ? sk : 0;
        cached->protocol = mine->key.kind == TRACE_END_TCP ? protocol : 0;
    }
    ret_end->id = cached->end;
    ret_end->kind = cached->kind;
    return 0;
}

static __always_inline struct end end_of(struct thread_state *state, __u32 fd)
{
    struct end end = {};
    end_of_file(state, file_of(fd), fd, &end);
    return end;
}

/* ---- Flows ---- */

static __always_inline struct trace_flow_value *flow_at(const struct trace_flow_key *key)
{
    struct trace_flow_value *flow = bpf_map_lookup_elem(&flows, key);
    if (flow)
        return flow;
    bpf_map_update_elem(&flows, key, (const void *)&no_flow, BPF_NOEXIST);
    return bpf_map_lookup_elem(&flows, key);
}

/* Enter what the call copied with the piece of it that this is, in proportion to its bytes; 0 or all that are left: the
 * rest. */
__noinline int enter_copies(struct thread_state *state, struct trace_flow_key *flow, __u64 bytes)
{
    if (!state || !flow)
        return 0;
    __u64 whole = state->unentered;
    bool rest = bytes == 0 || bytes >= whole;
    for (__u32 i = 0; i < TRACE_FUNCTION_COUNT; i++) {
        if (state->copied[i] == 0)
            continue;
        __u64 part = rest ? state->copied[i] : state->copied[i] * bytes / whole;
        struct trace_copy_key key = {.flow = *flow, .function = i};
        struct trace_copy_value *value = bpf_map_lookup_elem(&copies, &key);
        if (!value) {
            bpf_map_update_elem(&copies, &key, (const void *)&no_flow, BPF_NOEXIST);
            value = bpf_map_lookup_elem(&copies, &key);
        }
        if (value) {
            value->calls += state->copies[i];
            value->bytes += part;
        } else {
            LOST(copies, part);
        }
        state->copies[i] = 0;
        state->copied[i] -= part;
    }
    state->unentered = rest ? 0 : whole - bytes;
    return 0;
}

static __always_inline struct trace_flow_key flow_key(const struct thread_state *state, __u8 mechanism, __u32 source,
                                                      __u32 sink)
{
    struct trace_flow_key key = {
        .pid = state->pid, .thread = state->thread, .source = source, .sink = sink, .mechanism = mechanism};
    return key;
}

/* bytes < 0: the call failed. A call that is entered in pieces counts as one, with its first. */
static __always_inline void enter(struct thread_state *state, struct trace_flow_key *key, long bytes)
{
    if (trace_functions)
        enter_copies(state, key, bytes > 0 ? (__u64)bytes : 0);
    struct trace_flow_key own = *key; /* on this function's stack: see end_of_file */
    struct trace_flow_value *flow = flow_at(&own);
    if (!flow) {
        LOST(flow_calls, 1);
        if (bytes > 0)
            LOST(flows, (__u64)bytes);
        return;
    }
    if (bytes > 0) {
        flow->calls += state->pieces == 0;
        state->pieces = 1;
        flow->bytes += (__u64)bytes;
        flow->registered += state->registered ? (__u64)bytes : 0;
    } else {
        flow->fruitless++;
    }
    flow->transitions += state->transitions;
    state->transitions = 0;
    flow->delivered += state->delivered;
    state->delivered = 0;
}

/* ---- Which memory holds whose bytes ---- */

static __always_inline void remember(struct thread_state *state, const struct trace_flow_key *flow, __u64 start,
                                     __u64 size)
{
    if (start == 0 || size == 0)
        return;
    struct range *range = &state->ranges[++state->newest % RANGES];
    range->start = start;
    range->end = start + size;
    range->source = flow->source;
    range->thread = flow->thread;
    range->mechanism = flow->mechanism;
    range->way = flow->way;
    range->first = flow->first;
    range->window = trace_window;
    if (size >= SHARED_RANGE_MIN &&
        (threads_of_current() > 1 || flow->way == TRACE_BY_RING)) { /* a ring has workers when it needs some */
        struct memory_key key = {.start = start, .pid = flow->pid};
        struct range own = *range; /* on this function's stack: see end_of_file */
        bpf_map_update_elem(&memory, &key, &own, BPF_ANY);
    }
}

/* Find where the bytes at start came from. Returns how many of size bytes did, at most; fills *ret_range. */
__noinline __u64 taken_from(struct thread_state *state, __u64 start, __u32 pid, struct range *ret_range)
{
    if (!state || !ret_range)
        return 0;
    __u32 newest = state->newest;
    for (__u32 i = 0; i < RANGES; i++) {
        struct range *range = &state->ranges[(newest - i) % RANGES];
        if (range->start <= start && start < range->end && range->window == trace_window) {
            *ret_range = *range;
            return range->end - start;
        }
    }
    struct memory_key key = {.start = start, .pid = pid};
    struct range *range = bpf_map_lookup_elem(&memory, &key);
    if (!range || range->window != trace_window)
        return 0;
    *ret_range = *range;
    return range->end - range->start;
}

#define PIECES 8 /* of one buffer that several calls filled */

/* Bytes that left memory: the flow names where they had come from, if that is known. */
__noinline int enter_from_memory(struct thread_state *state, struct trace_flow_key *flow, __u64 start, long bytes)
{
    if (!state || !flow)
        return 0;
    for (__u32 i = 0; i < PIECES && bytes > 0; i++) {
        struct range range;
        __u64 held = taken_from(state, start, flow->pid, &range);
        if (!held)
            break;
        __u64 taken = held < (__u64)bytes ? held : (__u64)bytes;
        if (range.thread != flow->thread && held > taken) { /* the map `memory` finds no rest that begins elsewhere */
            struct range *rest = &state->ranges[++state->newest % RANGES];
            *rest = range;
            rest->start = start + taken;
        }
        struct trace_flow_key brought = {.pid = flow->pid,
                                         .thread = range.thread,
                                         .source = range.source,
                                         .mechanism = range.mechanism,
                                         .way = range.way,
                                         .first = range.first};
        struct trace_flow_value *first = flow_at(&brought);
        if (first)
            first->forwarded += taken;
        flow->source = range.source;
        flow->first = range.mechanism;
        enter(state, flow, (long)taken);
        start += taken;
        bytes -= (long)taken;
    }
    if (bytes <= 0)
        return 0;
    flow->source = 0;
    flow->first = TRACE_NONE;
    enter(state, flow, bytes);
    return 0;
}

struct vector {
    __u64 base, size;
};

#define VECTORS 16 /* looked at for where bytes go; the bytes of all are counted */

__noinline int remember_vectors(struct thread_state *state, struct trace_flow_key *flow, __u64 vectors,
                                __u64 count_bytes)
{
    __u64 bytes = count_bytes >> 16;
    __u32 count = (__u32)(count_bytes & 0xffff);
    if (!state || !flow)
        return 0;
    for (__u32 i = 0; i < VECTORS && i < count && bytes; i++) {
        struct vector vector = {};
        if (bpf_probe_read_user(&vector, sizeof vector, (void *)(vectors + i * sizeof vector)) != 0)
            break;
        __u64 size = vector.size < bytes ? vector.size : bytes;
        remember(state, flow, vector.base, size);
        bytes -= size;
    }
    return 0;
}

/* The count of vectors (16 bits, as the kernel limits it to 1024) and the bytes moved travel in one argument: a BPF
 * function takes five. */
__noinline int enter_vectors(struct thread_state *state, struct trace_flow_key *flow, __u64 vectors, __u64 count_bytes)
{
    __u64 bytes = count_bytes >> 16;
    __u32 count = (__u32)(count_bytes & 0xffff);
    if (!state || !flow)
        return 0;
    for (__u32 i = 0; i < VECTORS && i < count && bytes; i++) {
        struct vector vector = {};
        if (bpf_probe_read_user(&vector, sizeof vector, (void *)(vectors + i * sizeof vector)) != 0)
            break;
        __u64 size = vector.size < bytes ? vector.size : bytes;
        if (size)
            enter_from_memory(state, flow, vector.base, (long)size);
        bytes -= size;
    }
    if (bytes)
        enter_from_memory(state, flow, 0, (long)bytes);
    return 0;
}

/* ---- Notifications of MSG_ZEROCOPY (Documentation/networking/msg_zerocopy.rst) ---- */

struct control_header {
    __u64 size;
    __s32 level, type;
};

struct extended_error {
    __u32 error;
    __u8 origin, type, code, pad;
    __u32 info, data;
};

static __always_inline void enter_notifications(struct thread_state *state, struct end end, struct message *message)
{
    __u64 at = message->control, left = message->control_size;
    for (int i = 0; i < 4; i++) { /* msg_controllen now says how much the kernel wrote */
        struct {
            struct control_header header;
            struct extended_error error;
        } record = {};
        if (left < sizeof record || bpf_probe_read_user(&record, sizeof record, (void *)at) != 0)
            return;
        bool about_errors = (record.header.level == 0 && record.header.type == 11) || /* SOL_IP, IP_RECVERR */
                            (record.header.level == 41 && record.header.type == 25);  /* SOL_IPV6, IPV6_RECVERR */
        if (about_errors && record.error.error == 0 && record.error.origin == 5 /* SO_EE_ORIGIN_ZEROCOPY */) {
            struct trace_flow_key key = state->lent;
            if (key.sink != end.id || key.mechanism != TRACE_SEND_ZEROCOPY)
                key = flow_key(state, TRACE_SEND_ZEROCOPY, 0, end.id);
            struct trace_flow_value *flow = flow_at(&key);
            __u64 calls = (__u64)(__u32)(record.error.data - record.error.info) + 1;
            if (flow) {
                flow->notified += calls;
                if (record.error.code & 1) /* SO_EE_CODE_ZEROCOPY_COPIED */
                    flow->notified_copied += calls;
            } else {
                LOST(flow_calls, 1);
            }
        }
        __u64 size = (record.header.size + 7) & ~7ULL;
        if (size < sizeof(struct control_header) || size > left)
            return;
        at += size;
        left -= size;
    }
}

/* ---- Pipes ---- */

static __always_inline void fill_pipe(struct trace_flow_key *flow, struct end pipe)
{
    struct pipe_fill fill = {.pid = flow->pid,
                             .source = flow->source,
                             .thread = flow->thread,
                             .window = trace_window,
                             .mechanism = flow->mechanism,
                             .way = flow->way,
                             .first = flow->first};
    bpf_map_update_elem(&pipes, &pipe.id, &fill, BPF_ANY);
}

/* Bytes leave a pipe: if this process spliced them in, the flow goes on from where they came from. */
static __always_inline void drain_pipe(struct trace_flow_key *flow, struct end pipe, long bytes)
{
    if (bytes <= 0)
        return;
    struct pipe_fill *fill = bpf_map_lookup_elem(&pipes, &pipe.id);
    if (!fill || fill->pid != flow->pid || fill->window != trace_window)
        return;
    struct trace_flow_key brought = {.pid = fill->pid,
                                     .thread = fill->thread,
                                     .source = fill->source,
                                     .sink = pipe.id,
                                     .mechanism = fill->mechanism,
                                     .way = fill->way,
                                     .first = fill->first};
    struct trace_flow_value *first = flow_at(&brought);
    if (first)
        first->forwarded += (__u64)bytes;
    flow->source = fill->source;
    flow->first = fill->mechanism;
}

static __always_inline void forget_pipe(struct end pipe)
{
    if (bpf_map_lookup_elem(&pipes, &pipe.id))
        bpf_map_delete_elem(&pipes, &pipe.id);
}

/* ---- One call ---- */

struct call {
    __u64 a, b, c, d, e, f; /* arguments */
    long result;
};

static __always_inline bool is_socket(__u8 kind)
{
    return kind == TRACE_END_TCP || kind == TRACE_END_UDP || kind == TRACE_END_UNIX || kind == TRACE_END_SOCKET;
}

__noinline int on_input(struct thread_state *state, struct call *call, __u32 kind_of_call)
{
    if (!state || !call)
        return 0;
    struct end source = end_of(state, (__u32)call->a);
    if (source.kind == TRACE_END_NONE)
        return 0;
    __u64 flags = 0;
    struct message *message = &state->message;
    message->vectors = message->vector_count = 0;
    if (kind_of_call == TRACE_CALL_RECVFROM)
        flags = call->d;
    if (kind_of_call == TRACE_CALL_RECVMSG) {
        flags = call->c;
        if (bpf_probe_read_user(message, sizeof *message, (void *)call->b) != 0)
            return 0;
        if (flags & MSG_ERRQUEUE) {
            if (call->result >= 0)
                enter_notifications(state, source, message);
            return 0;
        }
    }
    __u8 mechanism = TRACE_READ;
    if (is_socket(source.kind))
        mechanism = flags & MSG_TRUNC && source.kind == TRACE_END_TCP ? TRACE_RECV_DISCARD : TRACE_RECV;
    struct trace_flow_key flow = flow_key(state, mechanism, source.id, 0);
    if (source.kind == TRACE_END_PIPE)
        drain_pipe(&flow, source, call->result);
    if (source.kind == TRACE_END_UDP && call->result > 0)
        state->delivered = (__u64)call->result; /* the tracepoint misses datagrams in one linear buffer */
    enter(state, &flow, call->result);
    if (call->result <= 0 || mechanism == TRACE_RECV_DISCARD)
        return 0;
    __u64 bytes = (__u64)call->result;
    if (kind_of_call == TRACE_CALL_READV)
        remember_vectors(state, &flow, call->b, bytes << 16 | (call->c & 0xffff));
    else if (kind_of_call == TRACE_CALL_RECVMSG)
        remember_vectors(state, &flow, message->vectors, bytes << 16 | (message->vector_count & 0xffff));
    else
        remember(state, &flow, call->b, bytes);
    return 0;
}

static __always_inline bool lends(__u32 fd, __u64 flags)
{
    if (!(flags & MSG_ZEROCOPY))
        return false;
    /* Without SO_ZEROCOPY the flag is ignored, and nothing is ever notified. */
    struct sock *sk = sock_of((struct file *)file_of(fd));
    unsigned long socket_flags = BPF_CORE_READ(sk, __sk_common.skc_flags);
    return socket_flags >> bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY) & 1;
}

/* Tier (a): from now on it is known whose flow the socket's loans belong to; what they cost already is entered with
 * this call. */
__noinline int know_lender(struct thread_state *state, struct trace_flow_key *flow, __u64 address)
{
    struct file *file = (struct file *)address;
    if (!trace_functions || !state || !flow)
        return 0;
    __u64 sk = (__u64)sock_of(file);
    struct lender *lender = bpf_map_lookup_elem(&lenders, &sk);
    if (!lender)
        return 0;
    lender->flow = *flow;
    __u64 pending = __sync_lock_test_and_set(&lender->pending, 0);
    if (pending) {
        state->copied[TRACE_FN_SKB_COPY_UBUFS] += pending;
        state->copies[TRACE_FN_SKB_COPY_UBUFS]++;
    }
    return 0;
}

__noinline int on_output(struct thread_state *state, struct call *call, __u32 kind_of_call)
{
    if (!state || !call)
        return 0;
    struct end sink = end_of(state, (__u32)call->a);
    if (sink.kind == TRACE_END_NONE)
        return 0;
    __u64 flags = 0;
    struct message *message = &state->message;
    message->vectors = message->vector_count = 0;
    if (kind_of_call == TRACE_CALL_SENDTO)
        flags = call->d;
    if (kind_of_call == TRACE_CALL_SENDMSG) {
        flags = call->c;
        if (bpf_probe_read_user(message, sizeof *message, (void *)call->b) != 0)
            return 0;
    }
    __u8 mechanism = TRACE_WRITE;
    if (is_socket(sink.kind))
        mechanism = lends((__u32)call->a, flags) ? TRACE_SEND_ZEROCOPY : TRACE_SEND;
    else if (sink.kind == TRACE_END_PIPE && call->result > 0)
        forget_pipe(sink);
    struct trace_flow_key flow = flow_key(state, mechanism, 0, sink.id);
    if (mechanism == TRACE_SEND_ZEROCOPY)
        know_lender(state, &flow, file_of((__u32)call->a));
    if (call->result <= 0)
        enter(state, &flow, call->result);
    else if (kind_of_call == TRACE_CALL_WRITEV)
        enter_vectors(state, &flow, call->b, (__u64)call->result << 16 | (call->c & 0xffff));
    else if (kind_of_call == TRACE_CALL_SENDMSG)
        enter_vectors(state, &flow, message->vectors, (__u64)call->result << 16 | (message->vector_count & 0xffff));
    else
        enter_from_memory(state, &flow, call->b, call->result);
    if (mechanism == TRACE_SEND_ZEROCOPY)
        state->lent = flow;
    return 0;
}

/* struct mmsghdr of 64-bit user space: a message and the bytes moved for it. */
struct counted_message {
    struct message message;
    __u32 bytes, unused;
};

#define MESSAGES 64

__noinline int on_messages(struct thread_state *state, struct call *call, __u32 kind_of_call)
{
    if (!state || !call)
        return 0;
    bool in = kind_of_call == TRACE_CALL_RECVMMSG;
    struct end end = end_of(state, (__u32)call->a);
    if (end.kind == TRACE_END_NONE)
        return 0;
    __u8 mechanism = in ? TRACE_RECV : lends((__u32)call->a, call->d) ? TRACE_SEND_ZEROCOPY : TRACE_SEND;
    struct trace_flow_key flow = flow_key(state, mechanism, in ? end.id : 0, in ? 0 : end.id);
    long bytes = 0;
    for (__u32 i = 0; i < MESSAGES && (long)i < call->result; i++) {
        __u32 one = 0;
        __u64 at = call->b + i * sizeof(struct counted_message) + __builtin_offsetof(struct counted_message, bytes);
        if (bpf_probe_read_user(&one, sizeof one, (void *)at) != 0)
            break;
        bytes += one;
    }
    if (call->result > MESSAGES)
        LOST(messages, (__u64)call->result - MESSAGES);
    if (in && end.kind == TRACE_END_UDP)
        state->delivered = (__u64)bytes; /* as in on_input */
    if (mechanism == TRACE_SEND_ZEROCOPY)
        know_lender(state, &flow, file_of((__u32)call->a));
    enter(state, &flow, call->result > 0 ? bytes : call->result);
    if (mechanism == TRACE_SEND_ZEROCOPY)
        state->lent = flow;
    return 0;
}

/* Descriptor to descriptor. */
__noinline int on_transfer(struct thread_state *state, struct call *call, __u32 mechanism)
{
    if (!state || !call)
        return 0;
    __u32 in = (__u32)call->a, out = (__u32)call->b;
    if (mechanism == TRACE_SENDFILE) {
        in = (__u32)call->b;
        out = (__u32)call->a;
    } else if (mechanism == TRACE_SPLICE || mechanism == TRACE_COPY_FILE_RANGE) {
        out = (__u32)call->c;
    }
    struct end source = end_of(state, in);
    struct end sink = end_of(state, out);
    struct trace_flow_key flow = flow_key(state, (__u8)mechanism, source.id, sink.id);
    if (source.kind == TRACE_END_PIPE)
        drain_pipe(&flow, source, call->result);
    enter(state, &flow, call->result);
    if (sink.kind == TRACE_END_PIPE && call->result > 0)
        fill_pipe(&flow, sink);
    return 0;
}

__noinline int on_vmsplice(struct thread_state *state, struct call *call)
{
    if (!state || !call)
        return 0;
    struct file *file = (struct file *)file_of((__u32)call->a);
    struct end pipe = end_of(state, (__u32)call->a);
    bool in = BPF_CORE_READ(file, f_mode) & FMODE_WRITE; /* which end of the pipe it is says which way */
    __u64 count_bytes = (__u64)(call->result > 0 ? call->result : 0) << 16 | (call->c & 0xffff);
    struct trace_flow_key flow = flow_key(state, in ? TRACE_VMSPLICE : TRACE_READ, in ? 0 : pipe.id, in ? pipe.id : 0);
    if (in) {
        if (call->result > 0) {
            enter_vectors(state, &flow, call->b, count_bytes);
            fill_pipe(&flow, pipe);
        } else {
            enter(state, &flow, call->result);
        }
        return 0;
    }
    drain_pipe(&flow, pipe, call->result);
    enter(state, &flow, call->result);
    remember_vectors(state, &flow, call->b, count_bytes);
    return 0;
}

#define FICLONE 0x40049409u
#define FICLONERANGE 0x4020940du

struct clone_range {
    __s64 source;
    __u64 offset, size, sink_offset;
};

__noinline int on_ioctl(struct thread_state *state, struct call *call)
{
    if (!state || !call)
        return 0;
    __u32 request = (__u32)call->b;
    if (request != FICLONE && request != FICLONERANGE)
        return 0;
    struct clone_range range = {.source = (__s64)call->c};
    if (request == FICLONERANGE && bpf_probe_read_user(&range, sizeof range, (void *)call->c) != 0)
        return 0;
    if (range.size == 0) { /* to the end of the source */
        struct file *file = (struct file *)file_of((__u32)range.source);
        __u64 size = (__u64)BPF_CORE_READ(file, f_inode, i_size);
        range.size = size > range.offset ? size - range.offset : 0;
    }
    struct end source = end_of(state, (__u32)range.source);
    struct end sink = end_of(state, (__u32)call->a);
    struct trace_flow_key flow = flow_key(state, TRACE_CLONE, source.id, sink.id);
    enter(state, &flow, call->result == 0 ? (long)range.size : call->result);
    return 0;
}

/* struct tcp_zerocopy_receive (linux/tcp.h): address, and what was mapped there. */
__noinline int on_getsockopt(struct thread_state *state, struct call *call)
{
    if (!state || !call)
        return 0;
    if (call->b != IPPROTO_TCP || call->c != 35 /* TCP_ZEROCOPY_RECEIVE */)
        return 0;
    struct {
        __u64 address;
        __u32 length, skip;
    } mapped = {};
    if (call->result == 0 && bpf_probe_read_user(&mapped, sizeof mapped, (void *)call->d) != 0)
        return 0;
    struct end source = end_of(state, (__u32)call->a);
    struct trace_flow_key flow = flow_key(state, TRACE_RECV_ZEROCOPY, source.id, 0);
    enter(state, &flow, call->result == 0 ? (long)mapped.length : call->result);
    remember(state, &flow, mapped.address, mapped.length);
    return 0;
}

static __always_inline void enter_call(struct task_struct *task, struct thread_state *state, struct pt_regs *regs,
                                       long result)
{
    state->transitions++;
    state->pieces = 0;
    state->unentered = result > 0 ? (__u64)result : 0;
#if defined(__TARGET_ARCH_x86)
    if (task->thread_info.status & 2 /* TS_COMPAT */) {
        LOST(foreign, 1);
        return;
    }
    __u32 number = (__u32)regs->orig_ax;
    struct call call = {regs->di, regs->si, regs->dx, regs->r10, regs->r8, regs->r9, result};
#else
    __u32 number = (__u32)regs->syscallno;
    struct call call = {regs->orig_x0,
                        regs->user_regs.regs[1],
                        regs->user_regs.regs[2],
                        regs->user_regs.regs[3],
                        regs->user_regs.regs[4],
                        regs->user_regs.regs[5],
                        result};
#endif
    if (number >= TRACE_CALL_NUMBERS)
        return;
    __u32 kind = trace_calls[number];
    switch (kind) {
    case TRACE_CALL_OTHER:
        break;
    case TRACE_CALL_READ:
    case TRACE_CALL_READV:
    case TRACE_CALL_RECVFROM:
    case TRACE_CALL_RECVMSG:
        on_input(state, &call, kind);
        break;
    case TRACE_CALL_WRITE:
    case TRACE_CALL_WRITEV:
    case TRACE_CALL_SENDTO:
    case TRACE_CALL_SENDMSG:
        on_output(state, &call, kind);
        break;
    case TRACE_CALL_RECVMMSG:
    case TRACE_CALL_SENDMMSG:
        on_messages(state, &call, kind);
        break;
    case TRACE_CALL_SENDFILE:
        on_transfer(state, &call, TRACE_SENDFILE);
        break;
    case TRACE_CALL_SPLICE:
        on_transfer(state, &call, TRACE_SPLICE);
        break;
    case TRACE_CALL_TEE:
        on_transfer(state, &call, TRACE_TEE);
        break;
    case TRACE_CALL_COPY_FILE_RANGE:
        on_transfer(state, &call, TRACE_COPY_FILE_RANGE);
        break;
    case TRACE_CALL_VMSPLICE:
        on_vmsplice(state, &call);
        break;
    case TRACE_CALL_IOCTL:
        on_ioctl(state, &call);
        break;
    case TRACE_CALL_GETSOCKOPT:
        on_getsockopt(state, &call);
        break;
    case TRACE_CALL_PROCESS_VM: {
        struct trace_flow_key flow = flow_key(state, TRACE_PROCESS_COPY, 0, 0);
        enter(state, &flow, result);
        break;
    }
    }
    state->delivered = 0;  /* of a call that was not entered: it must not count for the next */
    if (trace_functions) { /* nor may what it copied: execve reads files, fstat copies nothing but could */
        struct trace_flow_key none = flow_key(state, TRACE_NONE, 0, 0);
        enter_copies(state, &none, 0);
    }
}

/* ---- Inside calls ---- */

/* Called once for each piece of a socket buffer that is copied into the caller's memory (net/core/datagram.c). */
SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(on_delivery, const struct sk_buff *buffer, int length)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = bpf_task_storage_get(&threads, task, 0, 0);
    if (state && length > 0) {
        state->delivered += (__u64)length;
        if (trace_functions && !state->datagram_room) {
            state->copied[TRACE_FN_DATAGRAM_READ] += (__u64)length;
            state->copies[TRACE_FN_DATAGRAM_READ]++;
        }
    }
    return 0;
}

/* ---- Tier (a): the functions that copy ----
 *
 * Which functions, and which of their arguments or results is the number of bytes copied, was measured:
 * docs/design/2026-11-21-what-tier-a-can-count.md. Only functions that copy themselves are hooked, not those that call
 * them, so that a byte is counted where it is copied and nowhere else. User space leaves out those that the running
 * kernel does not have.
 *
 * A copy belongs to the call in which it was made. What softirq, interrupts and kernel threads copy is nobody's, and
 * listed so: whom a softirq interrupts is chance. */

static __always_inline void add_copy(struct trace_copy_key *key, long bytes)
{
    struct trace_copy_value *value = bpf_map_lookup_elem(&copies, key);
    if (!value) {
        bpf_map_update_elem(&copies, key, (const void *)&no_flow, BPF_NOEXIST);
        value = bpf_map_lookup_elem(&copies, key);
    }
    if (value) {
        value->calls++;
        value->bytes += (__u64)bytes;
    } else {
        LOST(copies, (__u64)bytes);
    }
}

static __always_inline struct work *work_at(__u64 request)
{
    struct work *work = bpf_map_lookup_elem(&works, &request);
    if (work)
        return work;
    bpf_map_update_elem(&works, &request, (const void *)&no_work, BPF_NOEXIST);
    return bpf_map_lookup_elem(&works, &request);
}

static __always_inline void count_copy(__u32 function, long bytes)
{
    if (bytes <= 0)
        return;
    struct task_struct *task = bpf_get_current_task_btf();
    bool foreign = in_foreign_context(task);
    struct thread_state *state = foreign                      ? NULL
                                 : task->flags & PF_IO_WORKER ? state_of_current(task)
                                                              : bpf_task_storage_get(&threads, task, 0, 0);
    if (state && state->request) {
        struct work *work = work_at(state->request);
        if (work) {
            work->copied[function] += (__u64)bytes;
            work->copies[function]++;
        } else {
            LOST(copies, (__u64)bytes);
        }
        return;
    }
    if (state) {
        state->copied[function] += (__u64)bytes;
        state->copies[function]++;
        return;
    }
    if (!foreign && !(task->flags & PF_KTHREAD))
        return; /* a process that is not traced, at work for itself */
    struct trace_copy_key key = {.function = function};
    add_copy(&key, bytes);
}

/* A page copied by a fault belongs to no call, but to the flow that on_page_fault entered. */
static __always_inline void count_fault_copy(void)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    if (!state)
        return;
    state->fault_copied = true;
    struct trace_copy_key key = {.flow = state->fault, .function = TRACE_FN_COPY_ON_WRITE};
    if (key.flow.pid == 0) { /* faults are not seen (not on arm64): the copy is all that is known of it */
        key.flow = flow_key(state, TRACE_COPY_ON_WRITE, 0, 0);
        struct trace_flow_value *flow = flow_at(&key.flow);
        if (flow) {
            flow->calls++;
            flow->bytes += trace_page_size;
        }
    }
    add_copy(&key, trace_page_size);
}

/* Does moving bytes into this iterator copy them? Into a pipe's (until Linux 6.4) it refers to the pages. */
static __always_inline bool iterator_copies(struct iov_iter *iterator)
{
    __u8 type = BPF_CORE_READ(iterator, iter_type);
    if (bpf_core_enum_value_exists(enum iter_type, ITER_PIPE) && type == bpf_core_enum_value(enum iter_type, ITER_PIPE))
        return false;
    return type != bpf_core_enum_value(enum iter_type, ITER_DISCARD);
}

/* Page cache into memory. The result includes what an earlier direct read brought. */
SEC("fexit/filemap_read")
int BPF_PROG(copied_filemap_read, struct kiocb *request, struct iov_iter *to, long already, long result)
{
    if (iterator_copies(to))
        count_copy(TRACE_FN_FILEMAP_READ, result - already);
    return 0;
}

SEC("fexit/shmem_file_read_iter")
int BPF_PROG(copied_shmem_file_read, struct kiocb *request, struct iov_iter *to, long result)
{
    if (iterator_copies(to))
        count_copy(TRACE_FN_SHMEM_FILE_READ, result);
    return 0;
}

/* Memory, or a pipe's pages, into the page cache: ext4, tmpfs and most others. */
SEC("fexit/generic_perform_write")
int BPF_PROG(copied_generic_perform_write, struct kiocb *request, struct iov_iter *from, long result)
{
    count_copy(TRACE_FN_GENERIC_PERFORM_WRITE, result);
    return 0;
}

/* XFS. What follows the iterator differs between kernels. */
SEC("fexit/iomap_file_buffered_write")
int copied_iomap_write(__u64 *arguments)
{
    __u64 result = 0;
    bpf_get_func_ret(arguments, &result);
    count_copy(TRACE_FN_IOMAP_WRITE, (long)result);
    return 0;
}

SEC("fexit/btrfs_buffered_write")
int BPF_PROG(copied_btrfs_write, struct kiocb *request, struct iov_iter *from, long result)
{
    count_copy(TRACE_FN_BTRFS_WRITE, result);
    return 0;
}

SEC("fexit/pipe_read")
int BPF_PROG(copied_pipe_read, struct kiocb *request, struct iov_iter *to, long result)
{
    count_copy(TRACE_FN_PIPE_READ, result);
    return 0;
}

SEC("fexit/pipe_write")
int BPF_PROG(copied_pipe_write, struct kiocb *request, struct iov_iter *from, long result)
{
    count_copy(TRACE_FN_PIPE_WRITE, result);
    return 0;
}

/* The two under their newer names. */
SEC("fexit/anon_pipe_read")
int BPF_PROG(copied_anon_pipe_read, struct kiocb *request, struct iov_iter *to, long result)
{
    count_copy(TRACE_FN_PIPE_READ, result);
    return 0;
}

SEC("fexit/anon_pipe_write")
int BPF_PROG(copied_anon_pipe_write, struct kiocb *request, struct iov_iter *from, long result)
{
    count_copy(TRACE_FN_PIPE_WRITE, result);
    return 0;
}

/* vmsplice out of a pipe, a page at a time. */
SEC("fexit/pipe_to_user")
int BPF_PROG(copied_pipe_to_user, void *pipe, void *buffer, void *description, int result)
{
    count_copy(TRACE_FN_PIPE_TO_USER, result);
    return 0;
}

/* Since Linux 6.5 sendfile and splice send by way of sendmsg: pages, by reference. */
#define MSG_SPLICE_PAGES 0x8000000

SEC("fexit/tcp_sendmsg_locked")
int BPF_PROG(copied_tcp_sendmsg, struct sock *sk, struct msghdr *message, unsigned long size, int result)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    long referred = state ? (long)state->referred : 0;
    if (state)
        state->referred = 0;
    if (!(BPF_CORE_READ(message, msg_flags) & MSG_SPLICE_PAGES))
        count_copy(TRACE_FN_TCP_SENDMSG, result - referred);
    return 0;
}

/* MSG_ZEROCOPY: these bytes of the call went by reference. Since Linux 6.16 it is given one thing more. */
SEC("fexit/skb_zerocopy_iter_stream")
int BPF_PROG(referred_iter_stream, struct sock *sk, struct sk_buff *buffer, struct msghdr *message, int size,
             void *loan)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    __u64 result = 0;
    bpf_get_func_ret(ctx, &result);
    if (!state || (int)result <= 0)
        return 0;
    state->referred += result & 0xffffffff;
    __u64 lent = (__u64)loan, socket = (__u64)sk;
    struct lender unknown = {};
    bpf_map_update_elem(&loans, &lent, &socket, BPF_ANY);
    if (!bpf_map_lookup_elem(&lenders, &socket))
        bpf_map_update_elem(&lenders, &socket, &unknown, BPF_NOEXIST);
    return 0;
}

/* TLS in the kernel, where it does not encrypt straight from the caller's pages. It says 0 or, since Linux 6.14, how
 * much. */
SEC("fexit/sk_msg_memcopy_from_iter")
int BPF_PROG(copied_tls_sendmsg, struct sock *sk, struct iov_iter *from, void *record, __u32 size, int result)
{
    count_copy(TRACE_FN_TLS_SENDMSG, result == 0 ? (long)size : result);
    return 0;
}

/* Unix sockets. */
SEC("fexit/skb_copy_datagram_from_iter")
int BPF_PROG(copied_datagram_from, struct sk_buff *buffer, int offset, struct iov_iter *from, int size, int result)
{
    if (result == 0)
        count_copy(TRACE_FN_UNIX_SENDMSG, size);
    return 0;
}

SEC("fexit/ip_generic_getfrag")
int BPF_PROG(copied_getfrag, void *from, char *to, int offset, int size, int odd, struct sk_buff *buffer, int result)
{
    if (result == 0)
        count_copy(TRACE_FN_UDP_SENDMSG, size);
    return 0;
}

/* A datagram in one linear buffer is copied past the tracepoint in on_delivery: what the call consumed says it all. */
static __always_inline void begin_datagram(struct msghdr *message)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    if (state)
        state->datagram_room = BPF_CORE_READ(message, msg_iter.count) + 1;
}

static __always_inline void end_datagram(struct msghdr *message)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    if (state && state->datagram_room) {
        count_copy(TRACE_FN_DATAGRAM_READ, (long)(state->datagram_room - 1 - BPF_CORE_READ(message, msg_iter.count)));
        state->datagram_room = 0;
    }
}

SEC("fentry/udp_recvmsg")
int BPF_PROG(begin_udp_recvmsg, struct sock *sk, struct msghdr *message)
{
    begin_datagram(message);
    return 0;
}

SEC("fexit/udp_recvmsg")
int BPF_PROG(copied_udp_recvmsg, struct sock *sk, struct msghdr *message)
{
    end_datagram(message);
    return 0;
}

SEC("fentry/udpv6_recvmsg")
int BPF_PROG(begin_udpv6_recvmsg, struct sock *sk, struct msghdr *message)
{
    begin_datagram(message);
    return 0;
}

SEC("fexit/udpv6_recvmsg")
int BPF_PROG(copied_udpv6_recvmsg, struct sock *sk, struct msghdr *message)
{
    end_datagram(message);
    return 0;
}

/* Pages that were lent and are copied after all, because somebody is about to keep or change them: local delivery, a
 * packet socket. All but what lies in the buffer's own head. Mostly in a softirq, but the loan tells whose they are; it
 * is gone from the buffer when the function returns. */
SEC("fentry/skb_copy_ubufs")
int BPF_PROG(begin_skb_copy_ubufs, struct sk_buff *buffer)
{
    __u32 zero = 0;
    struct unlending *unlending = bpf_map_lookup_elem(&unlendings, &zero);
    if (!unlending)
        return 0;
    struct skb_shared_info *shared = (void *)(BPF_CORE_READ(buffer, head) + BPF_CORE_READ(buffer, end));
    __u64 loan = (__u64)BPF_CORE_READ(shared, destructor_arg);
    __u64 *lender = bpf_map_lookup_elem(&loans, &loan);
    unlending->buffer = (__u64)buffer;
    unlending->lender = lender ? *lender : 0;
    return 0;
}

SEC("fexit/skb_copy_ubufs")
int BPF_PROG(copied_skb_copy_ubufs, struct sk_buff *buffer, unsigned flags, int result)
{
    __u32 zero = 0;
    long bytes = (long)BPF_CORE_READ(buffer, data_len);
    struct unlending *unlending = bpf_map_lookup_elem(&unlendings, &zero);
    if (result != 0 || bytes <= 0)
        return 0;
    __u64 socket = unlending && unlending->buffer == (__u64)buffer ? unlending->lender : 0;
    struct lender *lender = bpf_map_lookup_elem(&lenders, &socket);
    if (!lender) {
        count_copy(TRACE_FN_SKB_COPY_UBUFS, bytes);
    } else if (lender->flow.pid) {
        struct trace_copy_key key = {.flow = lender->flow, .function = TRACE_FN_SKB_COPY_UBUFS};
        add_copy(&key, bytes);
    } else {
        __sync_fetch_and_add(&lender->pending, (__u64)bytes);
    }
    return 0;
}

/* A device without scatter-gather or checksum offload. */
SEC("fexit/skb_copy_and_csum_bits")
int BPF_PROG(copied_skb_copy_and_csum, const struct sk_buff *buffer, int offset, __u8 *to, int size)
{
    count_copy(TRACE_FN_SKB_COPY_AND_CSUM, size);
    return 0;
}

/* Linearising, for what wants the bytes in a row; __pskb_pull_tail copies by calling it. */
SEC("fexit/skb_copy_bits")
int BPF_PROG(copied_skb_copy_bits, const struct sk_buff *buffer, int offset, void *to, int size, int result)
{
    if (result == 0)
        count_copy(TRACE_FN_SKB_COPY_BITS, size);
    return 0;
}

/* A private page that others have, too. Without a page it was the zero page: nothing is copied. */
SEC("fexit/wp_page_copy")
int BPF_PROG(copied_on_write, struct vm_fault *fault)
{
    if (BPF_CORE_READ(fault, page))
        count_fault_copy();
    return 0;
}

/* Where wp_page_copy is inlined: what copies a page for it, and since Linux 6.13 for the next one as well. Others call
 * it, too (persistent memory), but not in a fault. */
SEC("fexit/copy_mc_to_kernel")
int BPF_PROG(copied_page, void *to, const void *from, unsigned size, unsigned long left)
{
    if (left == 0 && size == trace_page_size)
        count_fault_copy();
    return 0;
}

/* The same on arm64, where it is a function. */
SEC("fexit/copy_user_highpage")
int BPF_PROG(copied_user_page)
{
    count_fault_copy();
    return 0;
}

/* The first write to a page of a private file mapping. */
SEC("fexit/finish_fault")
int BPF_PROG(copied_on_first_write, struct vm_fault *fault, unsigned result)
{
    struct thread_state *state = bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
    if (result == 0 && state && !state->fault_copied && BPF_CORE_READ(fault, cow_page))
        count_fault_copy();
    if (state)
        state->fault_copied = false;
    return 0;
}

/* ---- Page faults ---- */

struct fault {
    __u64 file;
    bool private_mapping, file_mapping;
};

static long look_at_mapping(struct task_struct *task, struct vm_area_struct *area, void *data)
{
    struct fault *fault = data;
    fault->file = (__u64)BPF_CORE_READ(area, vm_file); /* a number, as end_of_file takes it */
    fault->file_mapping = fault->file != 0;
    fault->private_mapping = !(area->vm_flags & VM_SHARED);
    return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(on_page_fault, unsigned long address, struct pt_regs *regs, unsigned long error)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = bpf_task_storage_get(&threads, task, 0, 0);
    if (!state)
        return 0;
    bool present = error & 1, write = error & 2; /* X86_PF_PROT, X86_PF_WRITE */
    state->fault_copied = false;
    if (present && !write)
        return 0;
    struct fault fault = {};
    if (bpf_find_vma(task, address, look_at_mapping, &fault, 0) != 0)
        return 0;
    struct end source = {};
    if (fault.file_mapping)
        end_of_file(state, fault.file, ~0u, &source);
    bool copies = write && fault.private_mapping && (present || fault.file_mapping);
    if (!copies && !fault.file_mapping)
        return 0; /* fresh zeroed memory: no bytes of anybody's */
    if (present && !copies)
        return 0; /* a shared page becomes writable */
    struct trace_flow_key flow = flow_key(state, copies ? TRACE_COPY_ON_WRITE : TRACE_MAP_FAULT, source.id, 0);
    /* A private page that was present is copied unless nobody else has it; a file's page surely is. */
    state->delivered = copies && !present ? trace_page_size : 0;
    __u64 transitions = state->transitions; /* of calls: theirs to enter */
    state->fault = flow;
    state->transitions = 0;
    state->pieces = 0;
    enter(state, &flow, trace_page_size);
    state->transitions = transitions;
    state->delivered = 0;
    return 0;
}

/* ---- io_uring ---- */

/* A buffer that the ring chose for receiving; since some Linux after 6.1 the request itself does not say which. */
static __always_inline __u64 memory_chosen(struct io_kiocb *request)
{
    struct io_async_msghdr *message = BPF_CORE_READ(request, async_data);
    if (!message || !bpf_core_field_exists(message->msg.msg_iter.ubuf) ||
        BPF_CORE_READ(message, msg.msg_iter.iter_type) != bpf_core_enum_value(enum iter_type, ITER_UBUF))
        return 0;
    return (__u64)BPF_CORE_READ(message, msg.msg_iter.ubuf);
}

/* Where an operation's one buffer is; 0: it has several, or none. */
static __always_inline __u64 memory_of(struct io_kiocb *request, __u8 opcode)
{
    switch (opcode) {
    case 4:  /* READ_FIXED */
    case 5:  /* WRITE_FIXED */
    case 22: /* READ */
    case 23: /* WRITE */
        return BPF_CORE_READ((struct io_rw *)request, addr);
    case 27: /* RECV */
        if (!BPF_CORE_READ((struct io_sr_msg *)request, buf))
            return memory_chosen(request);
        /* fall through */
    case 26: /* SEND */
    case 47: /* SEND_ZC */
        return (__u64)BPF_CORE_READ((struct io_sr_msg *)request, buf);
    }
    return 0;
}

/* Is that buffer one of those that the ring has registered? */
static __always_inline bool is_registered(struct io_kiocb *request, __u8 opcode)
{
    switch (opcode) {
    case 4:  /* READ_FIXED */
    case 5:  /* WRITE_FIXED */
    case 60: /* READV_FIXED */
    case 61: /* WRITEV_FIXED */
        return true;
    case 47:                                                          /* SEND_ZC */
    case 48:                                                          /* SENDMSG_ZC, since Linux 6.15 */
        return BPF_CORE_READ((struct io_sr_msg *)request, flags) & 4; /* IORING_RECVSEND_FIXED_BUF */
    }
    return false;
}

/* The notification of a SEND_ZC: it has the request's own user_data. */
static __always_inline void on_ring_notification(struct thread_state *state, struct io_kiocb *request,
                                                 const struct ring_key *key, long result)
{
    struct io_notif_data *notification = (struct io_notif_data *)request;
    struct trace_flow_key flow = state->lent;
    struct trace_flow_key *lent = bpf_map_lookup_elem(&lent_by_ring, key);
    if (lent) {
        flow = *lent;
        bpf_map_delete_elem(&lent_by_ring, key);
    }
    if (flow.mechanism != TRACE_SEND_ZEROCOPY ||
        (bpf_core_field_exists(notification->zc_report) && !BPF_CORE_READ(notification, zc_report)))
        return; /* without the usage report the kernel says nothing about copies */
    struct trace_flow_value *value = flow_at(&flow);
    if (value) {
        value->notified++;
        if (result & 0x80000000u) /* IORING_NOTIF_USAGE_ZC_COPIED */
            value->notified_copied++;
    }
}

/* The source of a splice: a descriptor, or with SPLICE_F_FD_IN_FIXED a number in the ring's own table. */
static __always_inline void end_of_splice(struct thread_state *state, struct io_kiocb *request, struct end *ret_end)
{
    struct io_splice *splice = (struct io_splice *)request;
    if (!bpf_core_type_exists(struct io_splice))
        return;
    __u32 fd = (__u32)BPF_CORE_READ(splice, splice_fd_in), known_as = ~0u;
    __u64 file = 0;
    if (!(BPF_CORE_READ(splice, flags) & (1u << 31))) {
        file = file_of(fd);
        known_as = fd;
    } else if (bpf_core_field_exists(splice->rsrc_node)) {
        file = BPF_CORE_READ(splice, rsrc_node, file_ptr) & ~7ULL;
    } else if (bpf_core_field_exists(struct io_file_table, files)) {
        unsigned long *files = BPF_CORE_READ(request, ctx, file_table.files);
        unsigned long pointer = 0;
        bpf_probe_read_kernel(&pointer, sizeof pointer, files + fd);
        file = pointer & ~7ULL;
    }
    end_of_file(state, file, known_as, ret_end);
}

/* A worker begins with a request. */
SEC("fentry/io_wq_submit_work")
int BPF_PROG(begin_work, struct io_wq_work *work)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = task->flags & PF_IO_WORKER ? state_of_current(task) : NULL;
    if (state)
        state->request = (__u64)work - bpf_core_field_offset(struct io_kiocb, work);
    return 0;
}

/* What workers copied for the request, that is complete, is this thread's to enter. */
static __always_inline void take_work(struct thread_state *state, __u64 request)
{
    struct work *work = trace_functions ? bpf_map_lookup_elem(&works, &request) : NULL;
    if (!work)
        return;
    for (__u32 i = 0; i < TRACE_FUNCTION_COUNT; i++) {
        state->copied[i] += work->copied[i];
        state->copies[i] += work->copies[i];
    }
    bpf_map_delete_elem(&works, &request);
}

static __always_inline void on_ring_operation(__u64 ring, struct io_kiocb *request, __u64 user_data, long result,
                                              __u32 flags)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = state_of_current(task);
    if (!state)
        return;
    struct ring_key key = {.ring = ring, .user_data = user_data};
    if (!request) { /* a multishot request that goes on */
        __u64 *known = bpf_map_lookup_elem(&receiving, &key);
        if (!known)
            return;
        request = (struct io_kiocb *)*known;
        if ((__u64)BPF_CORE_READ(request, ctx) != ring || BPF_CORE_READ(request, cqe.user_data) != user_data)
            return;
    }
    if (flags & 8 /* IORING_CQE_F_NOTIF */) {
        on_ring_notification(state, request, &key, result);
        return;
    }
    __u8 opcode = BPF_CORE_READ(request, opcode);
    __u8 mechanism = trace_ring[opcode % TRACE_RING_OPCODES];
    if (mechanism == TRACE_NONE)
        return;
    take_work(state, (__u64)request);
    struct file *file = BPF_CORE_READ(request, file);
    struct end end = {}, other = {};
    end_of_file(state, (__u64)file, ~0u, &end);
    if (mechanism == TRACE_READ && is_socket(end.kind))
        mechanism = TRACE_RECV;
    if (mechanism == TRACE_WRITE && is_socket(end.kind))
        mechanism = TRACE_SEND;
    bool in = mechanism == TRACE_READ || mechanism == TRACE_RECV || mechanism == TRACE_RECV_ZEROCOPY;
    struct trace_flow_key flow = flow_key(state, mechanism, in ? end.id : 0, in ? 0 : end.id);
    if (mechanism == TRACE_SPLICE || mechanism == TRACE_TEE) {
        end_of_splice(state, request, &other);
        flow.source = other.id;
        if (other.kind == TRACE_END_PIPE)
            drain_pipe(&flow, other, result);
    }
    flow.way = TRACE_BY_RING;
    state->pieces = 0;
    state->unentered = result > 0 ? (__u64)result : 0;
    if (mechanism == TRACE_SEND_ZEROCOPY)
        know_lender(state, &flow, (__u64)file);
    __u64 memory = memory_of(request, opcode);
    state->registered = is_registered(request, opcode);
    if (memory && !in && result > 0)
        enter_from_memory(state, &flow, memory, result);
    else
        enter(state, &flow, result);
    state->registered = false;
    if (end.kind == TRACE_END_PIPE && result > 0 && !in)
        fill_pipe(&flow, end);
    if (mechanism == TRACE_SEND_ZEROCOPY) {
        struct trace_flow_key lent = flow; /* on this function's stack: see end_of_file */
        if (result > 0)
            state->lent = flow;
        else
            lent.mechanism = TRACE_NONE;
        bpf_map_update_elem(&lent_by_ring, &key, &lent, BPF_ANY);
    }
    if (memory && in && result > 0)
        remember(state, &flow, memory, (__u64)result);
}

/* Linux 6.0 to 6.10: the completion in pieces. */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(on_ring_completion_pieces, void *ring, void *request, __u64 user_data, int result, unsigned flags)
{
    on_ring_operation((__u64)ring, request, user_data, result, flags);
    return 0;
}

/* Later: the completion itself. */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(on_ring_completion, void *ring, void *request, struct io_uring_cqe *completion)
{
    on_ring_operation((__u64)ring, request, completion->user_data, completion->res, completion->flags);
    return 0;
}

/* Attached while nothing is counted, too: a multishot request that was submitted then completes when something is. */
static __always_inline void on_ring_submission(struct io_kiocb *request)
{
    __u8 opcode = BPF_CORE_READ(request, opcode);
    __u64 pointer = (__u64)request;
    /* RECVMSG, RECV, READ_MULTISHOT, RECV_ZC */
    bool receives = opcode == 10 || opcode == 27 || opcode == 49 || opcode == 58;
    if ((!receives && !trace_functions) || !state_of_current(bpf_get_current_task_btf()))
        return;
    if (trace_functions) /* what was copied for one that is gone, and never reported */
        bpf_map_delete_elem(&works, &pointer);
    if (!receives)
        return;
    struct ring_key key = {.ring = (__u64)BPF_CORE_READ(request, ctx),
                           .user_data = BPF_CORE_READ(request, cqe.user_data)};
    bpf_map_update_elem(&receiving, &key, &pointer, BPF_ANY);
}

SEC("tp_btf/io_uring_submit_req")
int BPF_PROG(on_ring_submission_req, struct io_kiocb *request)
{
    on_ring_submission(request);
    return 0;
}

/* Its name until Linux 6.3. */
SEC("tp_btf/io_uring_submit_sqe")
int BPF_PROG(on_ring_submission_sqe, struct io_kiocb *request)
{
    on_ring_submission(request);
    return 0;
}

/* ---- Lives ---- */

static __always_inline void tell(__u32 kind, struct task_struct *task, __u32 parent)
{
    struct trace_event *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
    if (!event) {
        LOST(events, 1);
        return;
    }
    event->kind = kind;
    event->pid = process_of(task);
    event->parent = parent;
    event->exit_code = (__u32)task->exit_code;
    /* Of threads that are gone, and of this one, the last. */
    event->cpu_ns = task->signal->sum_sched_runtime + task->se.sum_exec_runtime;
    BPF_CORE_READ_STR_INTO(&event->comm, task, group_leader, comm); /* threads have names of their own */
    bpf_ringbuf_submit(event, 0);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
    if (child->tgid == parent->tgid) /* a thread */
        return 0;
    __u32 pid = process_of(child), parent_pid = process_of(parent);
    if (!bpf_task_storage_get(&threads, parent, 0, 0) && !in_scope(parent_pid))
        return 0;
    bpf_map_update_elem(&targets, &pid, &pid, BPF_ANY);
    tell(TRACE_EVENT_FORK, child, parent_pid);
    return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
    struct thread_state *state = state_of_current(task);
    if (!state)
        return 0;
    state->thread = thread_of(task); /* whichever thread calls exec becomes the first one */
    tell(TRACE_EVENT_EXEC, task, 0);
    return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
    struct thread_state *state = bpf_task_storage_get(&threads, task, 0, 0);
    if (!state)
        return 0;
    __u32 pid = state->pid;
    if (state->transitions) {
        __u64 *sum = bpf_map_lookup_elem(&transitions, &pid);
        if (sum)
            *sum += state->transitions;
        else
            bpf_map_update_elem(&transitions, &pid, &state->transitions, BPF_NOEXIST);
    }
    if (task->signal->nr_threads <= 1) {
        bpf_map_delete_elem(&targets, &pid);
        tell(TRACE_EVENT_EXIT, task, 0);
    }
    return 0;
}

/* ---- On the way out of calls ----
 *
 * The last in this file, as programs are loaded in its order: the verifier takes longer for these than for all others
 * together (0.25 s), and where it wants no program on a function it says so first. */

/* Since Linux 7.0 programs of tracepoints are preemptible; those of functions always were. Attached while the tracer
 * makes one call, before the others are. */
bool trace_preemptible = false;

SEC("tp_btf/sys_exit")
int BPF_PROG(find_preemption)
{
    struct task_struct *task = bpf_get_current_task_btf();
    if ((preemption_count(task) & PREEMPTION_OFF) == 0)
        trace_preemptible = true;
    return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_call, struct pt_regs *regs, long result)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = state_of_current(task);
    if (state) {
        state->call_entered = true;
        enter_call(task, state, regs, result);
    }
    return 0;
}

/* Until a program that was preempted goes on, the kernel leaves it out for everybody else on that CPU, for as long as
 * the preempted task waits for its turn. Where that can happen (find_preemption) this one takes its place. */
SEC("tp_btf/sys_exit")
int BPF_PROG(on_call_left_out, struct pt_regs *regs, long result)
{
    struct task_struct *task = bpf_get_current_task_btf();
    struct thread_state *state = state_of_current(task);
    if (state) {
        if (!state->call_entered)
            enter_call(task, state, regs, result);
        state->call_entered = false;
    }
    return 0;
}
