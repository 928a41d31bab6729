#!/usr/bin/env bash
# Installs Vulkan's loader and Mesa's lavapipe, a Vulkan driver that computes on the CPU, so
# that WebGPU can be executed where there is no GPU. Correctness only, never speed.
#
# Debian and its kin, as root. Mesa 22.3, that of Debian bookworm, fails in WebGPU's provider;
# 25, of bookworm-backports, works. Exits with 0 and says NOT RUN where it cannot be had:
# what needs it is skipped there.
set -uo pipefail

least=25
packages=(libvulkan1 mesa-vulkan-drivers)

not_run() {
  echo "NOT RUN: no software Vulkan: $*"
  exit 0
}

find_driver() {
  find /usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d \
    -name 'lvp_icd*.json' -print -quit 2>/dev/null
}

# Major version of the mesa-vulkan-drivers that is installed, or 0.
installed() {
  local version
  version=$(dpkg-query --show --showformat '${db:Status-Status} ${Version}' mesa-vulkan-drivers 2>/dev/null)
  case $version in
    "installed "*) version=${version#installed }; version=${version#*:}; echo "${version%%.*}" ;;
    *) echo 0 ;;
  esac
}

done_if_there() {
  [ -n "$(find_driver)" ] && [ "$(installed)" -ge "$least" ] || return 0
  echo "software Vulkan: $(find_driver), Mesa $(dpkg-query --show --showformat '${Version}' mesa-vulkan-drivers)"
  exit 0
}

command -v apt-get >/dev/null || {
  [ -n "$(find_driver)" ] && { echo "software Vulkan: $(find_driver)"; exit 0; }
  not_run "install Mesa's Vulkan drivers by this system's package manager"
}
done_if_there
[ "$(id -u)" = 0 ] || not_run "installing it takes root: sudo $0"

export DEBIAN_FRONTEND=noninteractive
. /etc/os-release
from=()
if [ "${VERSION_CODENAME:-}" = bookworm ]; then
  from=(--target-release bookworm-backports)
  if ! grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
    # The mirror that this system uses already.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    echo "deb ${mirror:-http://deb.debian.org/debian/} bookworm-backports main" \
      > /etc/apt/sources.list.d/bookworm-backports.list
  fi
fi
apt-get update -qq || echo "apt-get update failed; trying with what is known" >&2
apt-get install -y -qq --no-install-recommends "${from[@]}" "${packages[@]}" >/dev/null \
  || not_run "apt-get could not install ${packages[*]}"
done_if_there
not_run "WebGPU needs Mesa $least or newer, this system offers $(installed)"
