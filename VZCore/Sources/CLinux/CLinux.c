#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int clinux_accept(int socket) { return accept4(socket, 0, 0, SOCK_CLOEXEC); }

int clinux_share_blocks(int from, int to) { return ioctl(to, FICLONE, from); }

long long clinux_next_data(int file, long long offset) { return lseek(file, offset, SEEK_DATA); }

long long clinux_next_hole(int file, long long offset) { return lseek(file, offset, SEEK_HOLE); }
