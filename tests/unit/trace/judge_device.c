/* SPDX-License-Identifier: MIT
 *
 * judge-device ADDRESS:PORT (ROUTE RULE[,RULE]...)...: with each of the rules about devices in turn made its opposite,
 * is the judge of our receipts awake? (judge.c has the others.) What a device does shows only where packets leave by
 * it, so this runs in guests (tests/vm/test_trace.py). Prints a line for each: the route, the rule, how many receipts
 * agree with the trace, and how many do not.
 */
#include "lib/core/receipt.h"
#include "trace/check.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum receipt_rule receipt_mutant;

static const struct {
    const char *name;
    enum receipt_rule rule;
} rules[] = {
    {"none", RULE_NONE},
    {"gather", RULE_REFERENCE_TO_SCATTER_GATHER},
    {"linear", RULE_REFERENCE_TO_LINEAR},
    {"sent", RULE_SENT_TO_LINEAR},
    {"lent-copied", RULE_LENT_COPIED},
    {"lent", RULE_LENT_REFERRED_TO},
};

static int judge(struct check *check, enum sluice_route route, const char *name)
{
    struct check_result result;
    size_t i = 0;
    while (i < sizeof rules / sizeof rules[0] && strcmp(rules[i].name, name) != 0)
        i++;
    if (i == sizeof rules / sizeof rules[0])
        return -1;
    receipt_mutant = rules[i].rule;
    if (check_run(check, route, NULL, &result) < 0)
        return -1;
    printf("%s %s %u %u\n", sluice_route_name(route), name, result.agreed, result.disagreed);
    return 0;
}

int main(int count, char **arguments)
{
    struct check_options options = {.functions = true, .stream = stdout};
    struct check *check;
    int error = count < 4 || count % 2 != 0 ? -EINVAL : 0;
    for (int i = 2; i + 1 < count; i += 2)
        error = sluice_route_by_name(arguments[i]) < 0 ? -EINVAL : error;
    if (error < 0) {
        fprintf(stderr, "usage: judge-device ADDRESS:PORT (ROUTE RULE[,RULE]...)...\n");
        return 2;
    }
    options.peer = arguments[1];
    if (check_open(&options, &check) < 0)
        return 1;
    for (int i = 2; i < count && error == 0; i += 2)
        for (char *rule = strtok(arguments[i + 1], ","); rule != NULL && error == 0; rule = strtok(NULL, ","))
            error = judge(check, (enum sluice_route)sluice_route_by_name(arguments[i]), rule);
    check_close(check);
    return error < 0;
}
