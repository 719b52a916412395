/* SPDX-License-Identifier: MIT */
#include "privilege.h"
#include "sys.h"
#include <linux/capability.h>

bool privilege_has(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    return sys.capget(&header, data) == 0 && data[0].effective & 1u << capability;
}
