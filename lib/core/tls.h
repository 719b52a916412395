/* SPDX-License-Identifier: MIT
 *
 * TLS by the kernel (Documentation/networking/tls.rst) on a TCP socket: who does it, and what comes between its data.
 */
#ifndef SLUICE_CORE_TLS_H
#define SLUICE_CORE_TLS_H

#include <sluice/sluice.h>

struct sluice_end;

struct tls_facts {
    uint8_t send, receive;    /* enum sluice_tls_by; UNTOLD until `asked` */
    bool asked;               /* who it is, has been asked for */
    bool guessed;             /* a kernel too old to tell whether it receives: taken as if it did */
    bool zero_copy;           /* if it is a device */
    uint16_t version, cipher; /* as in struct tls_crypto_info */
};

/* Does the kernel do TLS on this descriptor, by cheap questions? Returns 0, or a negative errno: it is no TCP socket.
 */
int tls_find(int fd, struct tls_facts *ret_facts);

/* Who encrypts what this end sends, and decrypts what it receives? The kernel is asked once. */
enum sluice_tls_by tls_sends(struct sluice_end *end);
enum sluice_tls_by tls_receives(struct sluice_end *end);

/* Does the device take a file's pages as they are? Else the kernel copies them first, as the same bytes must be sent
 * again if a packet is lost. */
bool tls_device_refers(struct sluice_end *end);

/* Reading from an end that receives by kernel TLS failed with EIO or EINVAL: what comes next may be no data, but a
 * message to TLS itself, which only recvmsg(2) with room for its kind gives. Returns 0: the peer has ended the stream
 * (close_notify); or a negative errno and, if that is not `error` itself, why. The message stays where it is. */
int tls_explain(const struct sluice_end *end, int error, uint64_t *calls, const char **ret_reason);

#endif
