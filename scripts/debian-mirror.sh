# Sourced: debian_mirror, the Debian mirror that this machine's apt uses ("" if none), debian_keyring, and debian_apt_in,
# which sets up a separate apt in a directory: it sees one suite of that mirror and nothing of this machine.
debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg
debian_mirror=
if command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null; then
    debian_mirror=$(apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' \
        | awk -F '|' '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }' || true)
    # A fresh machine has no package lists yet, but its sources name the mirror.
    [[ -n $debian_mirror ]] || debian_mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2> /dev/null \
        | awk '!/security/ { print $1; exit }' || true)
    [[ -n $debian_mirror ]] || debian_mirror=$(awk '$1 == "deb" && !/security/ { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; exit } }' \
        /etc/apt/sources.list 2> /dev/null || true)
fi

debian_apt=()
debian_apt_in() { # directory suite: sets debian_apt, options for apt-get and apt-cache
    mkdir -p "$1"/{lists,cache/archives}/partial
    : > "$1/status"
    echo "deb [signed-by=$debian_keyring] $debian_mirror $2 main" > "$1/sources.list"
    debian_apt=(-qq -o "Dir::Etc::SourceList=$1/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$1/lists"
        -o "Dir::State::status=$1/status" -o "Dir::Cache=$1/cache" -o Acquire::Retries=3)
    [[ $(id -u) != 0 ]] || debian_apt+=(-o APT::Sandbox::User=root)
}
