#!/usr/bin/env bash
# What to do instead where a make target is for Linux only (its guests run under QEMU there). Always fails, so that nobody
# takes it for done.
#
# usage: elsewhere.sh TARGET
target=$1
{
    if [[ $(uname -s) == Darwin ]]; then
        cat << END
$target: this target runs Linux guests under QEMU, so it is for Linux. On this Mac, with Virtualization.framework:

  make build      the four programs in bin/, the agent signed with the virtualization entitlement
  make bundle     target/bundle/ShoesVZAgent.app, to be installed
  bin/shoes-vz-agent template restore-image                                      where Apple's restore image (IPSW) is
  bin/shoes-vz-agent template install-macos --ipsw FILE.ipsw --output DIRECTORY   a template of it
  bin/shoes-vz-agent template check DIRECTORY                                    whether it has all it needs

Then run server and agent as docs/on-a-mac.md says (part 4), and add a runner with \`bin/shoes-vz-client add\`.
END
    else
        echo "$target: this target runs Linux guests under QEMU, so it is for Linux; this is $(uname -s)."
    fi
} >&2
exit 1
