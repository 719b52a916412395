/* SPDX-License-Identifier: MIT */
#include "frames.h"

#include <fnmatch.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* _copy_to_user and _copy_from_user are left out on purpose: payload goes through iterators; what these two carry are
 * arguments (events of epoll, iovecs, addresses). So are clear_page (fills, does not copy) and folio_copy (migration of
 * pages: nobody asked for these bytes to move). The first pattern that matches counts. */
static const struct frame_pattern kernel_patterns[] = {
    {"_copy_to_iter", FRAME_COPIES, NULL, "read and recv: into the caller's memory"},
    {"_copy_from_iter*", FRAME_COPIES, NULL, "write and send: out of the caller's memory"},
    {"_copy_mc_to_iter", FRAME_COPIES, NULL, "the same from persistent memory"},
    {"copy_page_to_iter*", FRAME_COPIES, NULL, "read: page by page"},
    {"copy_page_from_iter*", FRAME_COPIES, NULL, "write: page by page"},
    {"copy_folio_*_iter*", FRAME_COPIES, NULL, "write: folio by folio"},
    {"csum_and_copy_*", FRAME_COPIES, NULL, "UDP and raw sockets: copies and adds up in one pass"},
    {"csum_partial_copy*", FRAME_COPIES, NULL, "the same"},
    {"crc32c_and_copy_to_iter", FRAME_COPIES, NULL, "the same, for NVMe over TCP"},
    {"simple_copy_to_iter", FRAME_COPIES, NULL, "recv"},
    {"skb_copy_datagram*", FRAME_COPIES, NULL, "recv; send on Unix sockets"},
    {"skb_copy_ubufs", FRAME_COPIES, NULL, "pages lent with MSG_ZEROCOPY, copied after all"},
    {"skb_copy_and_*", FRAME_COPIES, NULL, "a device without scatter-gather or checksums"},
    {"skb_copy_bits", FRAME_COPIES, NULL, "a packet made linear"},
    {"skb_store_bits", FRAME_COPIES, NULL, "a packet written to"},
    {"skb_copy", FRAME_COPIES, NULL, "a packet duplicated with its data"},
    {"skb_copy_expand", FRAME_COPIES, NULL, "the same"},
    {"__pskb_copy*", FRAME_COPIES, NULL, "a packet's head duplicated"},
    {"__pskb_pull_tail", FRAME_COPIES, NULL, "a packet made linear"},
    {"bio_copy_*", FRAME_COPIES, NULL, "bounce buffers of block devices"},
    {"dax_copy_*_iter", FRAME_COPIES, NULL, "files in persistent memory"},
    {"copy_mc_*", FRAME_COPIES, NULL, "a private page copied on write"},
    {"copy_user_large_folio", FRAME_COPIES, NULL, "a private huge page copied on write"},
    {"copy_user_highpage*", FRAME_COPIES, NULL, "a private page copied on write"},
    {"copy_page", FRAME_COPIES, NULL, "a private page copied on write"},
    {"copy_page_mc", FRAME_COPIES, NULL, "a private page copied on write"},
    {"memcpy_*sglist", FRAME_COPIES, NULL, "buffers of the kernel's ciphers"},
    {"memcpy_*scatterwalk", FRAME_COPIES, NULL, "buffers of the kernel's ciphers"},
    {"scatterwalk_copychunks", FRAME_COPIES, NULL, "buffers of the kernel's ciphers"},
    {"sg_copy_buffer", FRAME_COPIES, NULL, "scattered memory made linear"},

    {"rep_movs_alternative", FRAME_COPIES_FOR_CALLER, NULL, "the body of copy_to_user since Linux 6.4"},
    {"copy_user_generic*", FRAME_COPIES_FOR_CALLER, NULL, "the body of copy_to_user before"},
    {"copy_user_enhanced_fast_string", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"copy_user_fast_string", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"copy_user_short_string", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"copyin", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_from_iter"},
    {"copyout*", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_to_iter"},
    {"copy_to_user_iter*", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_to_iter"},
    {"copy_from_user_iter*", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_from_iter"},
    {"memcpy_to_iter*", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_to_iter"},
    {"memcpy_from_iter*", FRAME_COPIES_FOR_CALLER, NULL, "a step of _copy_from_iter"},
    {"*copy_user_nocache", FRAME_COPIES_FOR_CALLER, NULL, "write past the caches"},
    {"*copy_user_flushcache", FRAME_COPIES_FOR_CALLER, NULL, "write to persistent memory"},
    {"__memcpy_flushcache", FRAME_COPIES_FOR_CALLER, NULL, "write to persistent memory"},
    {"__arch_copy_*_user", FRAME_COPIES_FOR_CALLER, NULL, "the body of copy_to_user on arm64"},
    {"memcpy", FRAME_COPIES_FOR_CALLER, NULL, "copies structures as well as payload"},
    {"memcpy_orig", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"memcpy_erms", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"memmove", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"memmove_erms", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"__memcpy", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"__memmove", FRAME_COPIES_FOR_CALLER, NULL, "the same"},
    {"__pi_mem[cm]*", FRAME_COPIES_FOR_CALLER, NULL, "the same on arm64"},

    {"csum_partial*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"do_csum", FRAME_TRANSFORMS, NULL, "checksum"},
    {"crc32*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"crc64*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"crc_*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"crct10dif*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"aes_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"aesni_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"_aesni_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"__aes*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"gcm_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"ghash_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"clmul_ghash*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"chacha*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"poly1305*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"sha1_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"sha256_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"sha512_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"blake2*", FRAME_TRANSFORMS, NULL, "hash"},
    {"xxh64*", FRAME_TRANSFORMS, NULL, "hash"},
    {"ZSTD_*", FRAME_TRANSFORMS, NULL, "compression (btrfs, squashfs)"},
    {"HUF_*", FRAME_TRANSFORMS, NULL, "compression"},
    {"FSE_*", FRAME_TRANSFORMS, NULL, "compression"},
    {"LZ4_*", FRAME_TRANSFORMS, NULL, "compression"},
    {"lzo1x_*", FRAME_TRANSFORMS, NULL, "compression"},
    {"zlib_*", FRAME_TRANSFORMS, NULL, "compression"},
    {"inflate_fast", FRAME_TRANSFORMS, NULL, "compression"},
    {"raid6_*", FRAME_TRANSFORMS, NULL, "parity"},
    {"xor_*", FRAME_TRANSFORMS, NULL, "parity"},

    {"handle_softirqs", FRAME_SOFTIRQ, NULL, "runs softirqs since Linux 6.10"},
    {"__do_softirq", FRAME_SOFTIRQ, NULL, "runs softirqs before"},
    {"do_softirq", FRAME_SOFTIRQ, NULL, "called by local_bh_enable"},
    {"__irq_exit_rcu", FRAME_INTERRUPT, NULL, "an interrupt ends: softirqs run in whatever process was interrupted"},
    {"irq_exit_rcu", FRAME_INTERRUPT, NULL, "the same"},
    {"irq_exit", FRAME_INTERRUPT, NULL, "the same"},
    {"asm_sysvec_*", FRAME_INTERRUPT, NULL, "the same"},
    {"sysvec_*", FRAME_INTERRUPT, NULL, "the same"},
    {"asm_common_interrupt", FRAME_INTERRUPT, NULL, "the same"},
    {"common_interrupt", FRAME_INTERRUPT, NULL, "the same"},
    {"el[01]?_64_irq*", FRAME_INTERRUPT, NULL, "the same on arm64"},
    {"run_ksoftirqd", FRAME_INTERRUPT, NULL, "softirqs put off to a thread of their own"},
    {"do_syscall_64", FRAME_SYSTEM_CALL, NULL, "x86-64"},
    {"entry_SYSCALL*", FRAME_SYSTEM_CALL, NULL, "x86-64"},
    {"x64_sys_call", FRAME_SYSTEM_CALL, NULL, "x86-64"},
    {"__x64_sys_*", FRAME_SYSTEM_CALL, NULL, "x86-64"},
    {"__ia32_*sys_*", FRAME_SYSTEM_CALL, NULL, "32-bit programs on x86-64"},
    {"*do_fast_syscall_32", FRAME_SYSTEM_CALL, NULL, "32-bit programs on x86-64"},
    {"do_int80_*", FRAME_SYSTEM_CALL, NULL, "32-bit programs on x86-64"},
    {"el0_svc*", FRAME_SYSTEM_CALL, NULL, "arm64"},
};

static const struct frame_pattern user_patterns[] = {
    {"memcpy", FRAME_COPIES, "memcpy", "C library"},
    {"memmove", FRAME_COPIES, "memmove", "C library"},
    {"mempcpy", FRAME_COPIES, "memcpy", "C library"},
    {"bcopy", FRAME_COPIES, "memmove", "C library"},
    /* glibc's variants for a processor: memcpy and memmove are one function there. */
    {"__memcpy*", FRAME_COPIES, "memcpy", "C library, chosen for this processor"},
    {"__memmove*", FRAME_COPIES, "memcpy", "C library, chosen for this processor"},
    {"__mempcpy*", FRAME_COPIES, "memcpy", "C library, chosen for this processor"},
    {"memmove_avx*", FRAME_COPIES, "memcpy", "C library, chosen for this processor"},
    {"memcpy_*fwd", FRAME_COPIES, "memcpy", "C library of other systems"},
    {"runtime.memmove", FRAME_COPIES, NULL, "Go: every copy() and io.Copy's buffers"},
    {"runtime.memmove.abi0", FRAME_COPIES, "runtime.memmove", "Go"},

    {"aes_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"_aes*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"aesni_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"AES_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"vaes_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"_vaes*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"ossl_vaes*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"gcm_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"ossl_gcm_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"CRYPTO_gcm128_*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"[cC]ha[cC]ha20*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"[pP]oly1305*", FRAME_TRANSFORMS, NULL, "cipher"},
    {"sha1_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"sha256_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"sha512_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"SHA1_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"SHA256_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"SHA512_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"MD5_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"ossl_md5_*", FRAME_TRANSFORMS, NULL, "hash"},
    {"KeccakF1600*", FRAME_TRANSFORMS, NULL, "hash"},
    {"blake2*", FRAME_TRANSFORMS, NULL, "hash"},
    {"crypto/*", FRAME_TRANSFORMS, NULL, "Go's ciphers and hashes"},
    {"compress/*", FRAME_TRANSFORMS, NULL, "Go's compression"},
    {"hash/*", FRAME_TRANSFORMS, NULL, "Go's checksums"},
    {"deflate*", FRAME_TRANSFORMS, NULL, "zlib"},
    {"inflate*", FRAME_TRANSFORMS, NULL, "zlib"},
    {"longest_match*", FRAME_TRANSFORMS, NULL, "zlib"},
    {"crc32*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"adler32*", FRAME_TRANSFORMS, NULL, "checksum"},
    {"pg_comp_crc32c*", FRAME_TRANSFORMS, NULL, "PostgreSQL's checksum"},
    {"ZSTD_*", FRAME_TRANSFORMS, NULL, "zstd"},
    {"HUF_*", FRAME_TRANSFORMS, NULL, "zstd"},
    {"FSE_*", FRAME_TRANSFORMS, NULL, "zstd"},
    {"XXH*", FRAME_TRANSFORMS, NULL, "hash"},
    {"LZ4_*", FRAME_TRANSFORMS, NULL, "LZ4"},
    {"LZ4HC_*", FRAME_TRANSFORMS, NULL, "LZ4"},
    {"Brotli*", FRAME_TRANSFORMS, NULL, "brotli"},
    {"lzma_*", FRAME_TRANSFORMS, NULL, "xz"},
    {"BZ2_*", FRAME_TRANSFORMS, NULL, "bzip2"},
};

/* Libraries that do little else, and whose inner loops are assembler or static functions: Debian's have no names for
 * them. Handshakes and parsing of certificates count too, which only overstates what zero copy cannot save. */
static const struct frame_pattern object_patterns[] = {
    {"libcrypto.so*", FRAME_TRANSFORMS, NULL, "OpenSSL: assembler without exported names"},
    {"libnettle.so*", FRAME_TRANSFORMS, NULL, "GnuTLS's ciphers"},
    {"libgcrypt.so*", FRAME_TRANSFORMS, NULL, "ciphers and hashes"},
    {"libsodium.so*", FRAME_TRANSFORMS, NULL, "ciphers and hashes"},
    {"libmbedcrypto.so*", FRAME_TRANSFORMS, NULL, "ciphers and hashes"},
    {"libwolfssl.so*", FRAME_TRANSFORMS, NULL, "TLS"},
    {"libfreebl*.so*", FRAME_TRANSFORMS, NULL, "NSS's ciphers"},
    {"libz.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libz-ng.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libzstd.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"liblz4.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"liblzma.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libbz2.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libbrotli*.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libsnappy.so*", FRAME_TRANSFORMS, NULL, "compression"},
    {"libdeflate.so*", FRAME_TRANSFORMS, NULL, "compression"},
};

static const struct frame_pattern *find(const struct frame_pattern *patterns, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (fnmatch(patterns[i].pattern, name, 0) == 0)
            return &patterns[i];
    }
    return NULL;
}

#define FIND(patterns, name) find(patterns, sizeof(patterns) / sizeof(patterns)[0], name)

const struct frame_pattern *frames_kernel(const char *symbol)
{
    /* No name in the kernel has a dot of its own: ".part.0", ".constprop.0", ".isra.0", ".cold", ".llvm.123". */
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(symbol, "."), symbol);
    return FIND(kernel_patterns, name);
}

size_t frames_plain_length(const char *symbol)
{
    static const char *const suffixes[] = {".part.", ".constprop.", ".isra.", ".cold", ".llvm.", "@"};
    size_t length = strlen(symbol);
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        const char *suffix = strstr(symbol, suffixes[i]);
        if (suffix != NULL && suffix != symbol && (size_t)(suffix - symbol) < length)
            length = (size_t)(suffix - symbol);
    }
    return length;
}

const struct frame_pattern *frames_user(const char *symbol, const char *object)
{
    if (symbol != NULL) {
        char name[128];
        size_t length = frames_plain_length(symbol);
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), symbol);
        const struct frame_pattern *pattern = FIND(user_patterns, name);
        if (pattern != NULL)
            return pattern;
    }
    return FIND(object_patterns, object);
}
