// What the stand-in needs of Linux that Swift's Glibc module leaves out.
#ifndef CLINUX_H
#define CLINUX_H

// Accepts a connection; its descriptor is closed on exec. -1 and errno.
int clinux_accept(int socket);

// Makes `to` share the blocks of `from` (FICLONE). -1 and errno.
int clinux_share_blocks(int from, int to);

// The offset at or after `offset` where data (or a hole) begins. -1 and errno, ENXIO beyond the last.
long long clinux_next_data(int file, long long offset);
long long clinux_next_hole(int file, long long offset);

#endif
