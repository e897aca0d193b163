# Sourced: debian_mirror, the Debian mirror this machine's apt uses ("" when it uses none), and debian_keyring.
debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg
debian_mirror=
if command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null; then
    debian_mirror=$(apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' \
        | awk -F '|' '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }' || true)
    # A fresh machine has no package lists yet; its sources name the mirror all the same.
    [[ -n $debian_mirror ]] || debian_mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2> /dev/null \
        | awk '!/security/ { print $1; exit }' || true)
    [[ -n $debian_mirror ]] || debian_mirror=$(awk '$1 == "deb" && !/security/ { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; exit } }' \
        /etc/apt/sources.list 2> /dev/null || true)
fi
