#!/usr/bin/env bash
# Prints what to do instead, on a system where a make target does not work because its guests run under QEMU on Linux.
# Always fails, so that it is not mistaken for success.
#
# usage: elsewhere.sh TARGET
target=$1
{
    if [[ $(uname -s) == Darwin ]]; then
        cat << END
$target: this target runs Linux guests under QEMU, so it is for Linux. On this Mac, with Virtualization.framework:

  make build      the four programs in bin/, the agent signed with the virtualization entitlement
  make bundle     target/bundle/ShoesVZAgent.app, ready to install
  bin/shoes-vz-agent template restore-image                                      the URL of Apple's restore image (IPSW)
  bin/shoes-vz-agent template install-macos --ipsw FILE.ipsw --output DIRECTORY   a template from that image
  bin/shoes-vz-agent template check DIRECTORY                                    a check of the template

Then run server and agent as docs/on-a-mac.md says (part 4), and add a runner with \`bin/shoes-vz-client add\`.
END
    else
        echo "$target: this target runs Linux guests under QEMU, so it is for Linux; this is $(uname -s)."
    fi
} >&2
exit 1
