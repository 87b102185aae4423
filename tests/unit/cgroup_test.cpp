#include "engine/sys/cgroup.hpp"

#include <doctest/doctest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace {

using percore::sys::read_cpu_quota;

// A file system of its own, removed with everything in it.
class tree {
 public:
  tree() {
    std::string pattern = (std::filesystem::temp_directory_path() / "percore-cgroup-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    root_ = pattern;
  }
  ~tree() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  tree(const tree&) = delete;
  tree& operator=(const tree&) = delete;

  tree& file(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
    return *this;
  }
  tree& member(const std::string& lines) { return file("/proc/self/cgroup", lines); }
  tree& mounts(const std::string& lines) {
    return file("/proc/self/mountinfo", "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n" + lines);
  }
  tree& limit_v2(const std::string& directory, const std::string& text) {
    return file("/sys/fs/cgroup" + directory + "/cpu.max", text + "\n");
  }
  tree& limit_v1(const std::string& directory, const std::string& quota, const std::string& period) {
    return file(directory + "/cpu.cfs_quota_us", quota + "\n")
        .file(directory + "/cpu.cfs_period_us", period + "\n");
  }
  [[nodiscard]] double quota() const { return read_cpu_quota(root_); }

 private:
  std::string root_;
};

const std::string v2_mount =
    "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string v1_mount =
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";

}  // namespace

TEST_CASE("cgroup: nothing to read is no quota") {
  tree files;
  CHECK(files.quota() == 0);
  files.member("0::/a\n");
  CHECK(files.quota() == 0);
  files.mounts("");
  CHECK(files.quota() == 0);
  files.mounts(v2_mount);
  CHECK(files.quota() == 0);
}

TEST_CASE("cgroup: v2 takes the smallest limit up to the root") {
  tree files;
  files.member("0::/user.slice/app:1.scope\n")
      .mounts(v2_mount)
      .limit_v2("/user.slice/app:1.scope", "max 100000");
  CHECK(files.quota() == 0);
  files.limit_v2("/user.slice/app:1.scope", "250000 100000");
  CHECK(files.quota() == 2.5);
  files.limit_v2("/user.slice", "400000 100000");
  CHECK(files.quota() == 2.5);
  files.limit_v2("/user.slice", "50000 100000");
  CHECK(files.quota() == 0.5);
  files.limit_v2("/user.slice/other.scope", "1000 100000");
  CHECK(files.quota() == 0.5);
}

TEST_CASE("cgroup: v2 in a cgroup namespace has its limit at the mount point") {
  tree files;
  files.member("0::/\n").mounts(v2_mount).limit_v2("", "150000 100000");
  CHECK(files.quota() == 1.5);
}

TEST_CASE("cgroup: a mount that shows a subtree") {
  tree files;
  files.mounts("30 22 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
      .limit_v2("", "300000 100000");
  SUBCASE("the process is at its top") {
    files.member("0::/docker/abc\n");
    CHECK(files.quota() == 3);
  }
  SUBCASE("the process is below it") {
    files.member("0::/docker/abc/worker\n").limit_v2("/worker", "200000 100000");
    CHECK(files.quota() == 2);
  }
  SUBCASE("the process is elsewhere, and a common prefix of names is not a common ancestor") {
    files.member("0::/docker/abcdef\n").limit_v2("/def", "100000 100000");
    CHECK(files.quota() == 0);
  }
  SUBCASE("the process was moved out of the namespace") {
    files.member("0::/../other\n");
    CHECK(files.quota() == 0);
  }
}

TEST_CASE("cgroup: a mount from outside of the namespace shows an ancestor") {
  tree files;
  files.member("0::/\n").mounts("30 22 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  files.limit_v2("", "700000 100000");
  CHECK(files.quota() == 7);
}

TEST_CASE("cgroup: a group that is not visible falls back to its visible ancestors") {
  tree files;
  files.member("0::/a/b/c\n").mounts(v2_mount).limit_v2("/a", "600000 100000");
  CHECK(files.quota() == 6);
}

TEST_CASE("cgroup: v1") {
  tree files;
  const std::string base = "/sys/fs/cgroup/cpu,cpuacct";
  files.member("12:cpuset:/elsewhere\n5:cpu,cpuacct:/box/inner\n1:name=systemd:/x\n").mounts(v1_mount);
  SUBCASE("no limit") {
    files.limit_v1(base + "/box/inner", "-1", "100000");
    CHECK(files.quota() == 0);
  }
  SUBCASE("a limit, and a smaller one above") {
    files.limit_v1(base + "/box/inner", "150000", "50000");
    CHECK(files.quota() == 3);
    files.limit_v1(base + "/box", "20000", "10000").limit_v1(base, "-1", "100000");
    CHECK(files.quota() == 2);
  }
  SUBCASE("a file is missing") {
    files.file(base + "/box/inner/cpu.cfs_quota_us", "100000\n");
    CHECK(files.quota() == 0);
  }
  SUBCASE("a container sees its own group at the mount point") {
    files.mounts("31 30 0:27 /box/inner " + base + " ro - cgroup cgroup rw,cpu,cpuacct\n");
    files.limit_v1(base, "400000", "100000");
    CHECK(files.quota() == 4);
  }
}

TEST_CASE("cgroup: v1 and v2 side by side") {
  tree files;
  files.member("2:cpu:/one\n0::/two\n")
      .mounts(
          "31 30 0:27 / /cg/cpu rw - cgroup cgroup rw,cpu\n32 30 0:28 / /cg/unified rw - cgroup2 cgroup2 "
          "rw\n")
      .limit_v1("/cg/cpu/one", "300000", "100000");
  CHECK(files.quota() == 3);
  files.file("/cg/unified/two/cpu.max", "200000 100000\n");
  CHECK(files.quota() == 2);
}

TEST_CASE("cgroup: a mount point with a space") {
  tree files;
  files.member("0::/a\n").mounts("30 22 0:26 / /cg\\040x rw - cgroup2 none rw\n");
  files.file("/cg x/a/cpu.max", "100000 100000\n");
  CHECK(files.quota() == 1);
}

TEST_CASE("cgroup: garbage is no quota") {
  tree files;
  files.member("\n:\n::\n0:\n0::\nx:cpu\n0::/a\n").mounts("garbage\n - \n1 2 3 4 5 6 -\n" + v2_mount);
  for (const char* text : {"", "max", "-5 100000", "100000", "100000 0", "x y", "0 100000"}) {
    CAPTURE(text);
    files.limit_v2("/a", text);
    CHECK(files.quota() == 0);
  }
}

TEST_CASE("cgroup: this machine") {
  CHECK(read_cpu_quota() >= 0);
}
