# SPDX-License-Identifier: MIT
#
# The commands. Meson does the building; everything made lands under build/.

BUILD   := build
RELEASE := $(BUILD)/release

# make serve
DIR     ?= .
LISTEN  ?= 127.0.0.1:8080
# make install
PREFIX  ?= /usr/local
prefix  ?= $(PREFIX)
# make fuzz: seconds for each fuzzer
SECONDS ?= 60

.PHONY: all serve check deb bench fuzz format install uninstall clean help
.DEFAULT_GOAL := all

all: $(RELEASE)/build.ninja
	@ninja -C $(RELEASE) app/sluice >$(BUILD)/build.log 2>&1 || { cat $(BUILD)/build.log; exit 1; }
	@ln -f $(RELEASE)/app/sluice $(BUILD)/sluice

# The prefix is meson's to know from the start: it is written into sluice.pc.
$(RELEASE)/build.ninja:
	@mkdir -p $(BUILD)
	@meson setup $(RELEASE) --prefix='$(prefix)' >$(BUILD)/setup.log 2>&1 || { cat $(BUILD)/setup.log; exit 1; }

# By way of the environment, so that any name reaches the program as it is.
serve: export SERVE_DIR := $(DIR)
serve: export SERVE_LISTEN := $(LISTEN)
serve:
	@tools/bootstrap build
	@$(MAKE) --no-print-directory all
	@exec $(BUILD)/sluice serve "$$SERVE_DIR" --listen "$$SERVE_LISTEN"

check:
	@tools/bootstrap check
	@exec tools/check

deb:
	@tools/bootstrap deb
	@exec tools/deb

bench: all
	@ninja -C $(RELEASE) --quiet
	@bench/run
	@bench/https
	@bench/proxy
	@exec bench/mechanisms

fuzz:
	@tools/bootstrap check
	@exec tools/fuzz '$(SECONDS)'

format:
	@git ls-files '*.[ch]' | xargs clang-format -i

install: all
	@meson configure $(RELEASE) --prefix='$(prefix)'
	@tools/install $(RELEASE) '$(DESTDIR)'

uninstall:
	@tools/install --remove $(RELEASE) '$(DESTDIR)'

clean:
	@rm -rf $(BUILD)

help:
	@echo 'make              build $(BUILD)/sluice'
	@echo 'make serve        install what building needs, build, serve [DIR=.] at [LISTEN=127.0.0.1:8080]'
	@echo 'make check        install what testing needs, build, run all tests'
	@echo 'make deb          build Debian packages into $(BUILD)/deb'
	@echo 'make bench        measure against bare loops, other servers and proxies, and cp'
	@echo 'make fuzz         run the fuzzers, [SECONDS=60] each'
	@echo 'make format       clang-format every source file'
	@echo 'make install      program, library, header, man pages, completions under [PREFIX=/usr/local], staged in [DESTDIR=]'
	@echo 'make uninstall    remove exactly what make install installed there'
	@echo 'make clean        remove $(BUILD)/'
