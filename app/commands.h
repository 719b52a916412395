/* SPDX-License-Identifier: MIT
 *
 * The subcommands of sluice. Each gets what follows its name and returns an exit code.
 */
#ifndef SLUICE_APP_COMMANDS_H
#define SLUICE_APP_COMMANDS_H

int cp_main(int argc, char **argv);
int doctor_main(int argc, char **argv);
int fanout_main(int argc, char **argv);
int proxy_main(int argc, char **argv);
int serve_main(int argc, char **argv);
int trace_main(int argc, char **argv);

#endif
