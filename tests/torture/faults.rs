//! The errors of each system call that its manual page lists (man-pages 6.03), including the
//! network errors that `accept(2)`, `tcp(7)` and `unix(7)` mention.

/// A system call and its errors, separated by spaces.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) errors: &'static str,
}

const fn call(name: &'static str, errors: &'static str) -> Call {
    Call { name, errors }
}

pub(crate) const CALLS: [Call; 30] = [
    call("epoll_create1", "EINVAL EMFILE ENFILE ENOMEM"),
    call("epoll_ctl", "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM"),
    call("epoll_wait", "EBADF EFAULT EINTR EINVAL"),
    call("eventfd2", "EINVAL EMFILE ENFILE ENODEV ENOMEM"),
    call("recvfrom", RECEIVING),
    call("read", "EAGAIN EBADF EFAULT EINTR EINVAL EIO EISDIR"),
    call("sendto", SENDING),
    call(
        "write",
        "EAGAIN EBADF EDESTADDRREQ EDQUOT EFAULT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE",
    ),
    call("accept4", ACCEPTING),
    call("shutdown", "EBADF EINVAL ENOTCONN ENOTSOCK"),
    call("setsockopt", "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK ENOMEM ENOBUFS"),
    call("getsockopt", "EBADF EFAULT EINVAL ENOPROTOOPT ENOTSOCK"),
    call("getsockname", "EBADF EFAULT EINVAL ENOBUFS ENOTSOCK"),
    call("ioctl", "EBADF EFAULT EINVAL ENOTTY"),
    call("fcntl", "EACCES EAGAIN EBADF EBUSY EDEADLK EINTR EINVAL EMFILE ENOLCK EPERM"),
    call("close", "EBADF EDQUOT EINTR EIO ENOSPC"),
    call("socket", "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT"),
    call("socketpair", "EAFNOSUPPORT EFAULT EMFILE ENFILE EOPNOTSUPP EPROTONOSUPPORT"),
    call(
        "bind",
        "EACCES EADDRINUSE EADDRNOTAVAIL EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR ENOTSOCK EROFS",
    ),
    call("listen", "EADDRINUSE EBADF ENOTSOCK EOPNOTSUPP"),
    call(
        "connect",
        "EACCES EAGAIN EBADF ECONNREFUSED EINTR ENOENT ENOTSOCK EPERM EPROTOTYPE ETIMEDOUT",
    ),
    call(
        "mkdir",
        "EACCES EDQUOT EEXIST ELOOP EMLINK ENAMETOOLONG ENOENT ENOMEM ENOSPC ENOTDIR EPERM EROFS",
    ),
    call("openat", "EACCES EINTR EISDIR ELOOP EMFILE ENFILE ENOENT ENOMEM ENOTDIR EPERM"),
    call("chmod", "EACCES ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS"),
    call(
        "linkat",
        "EACCES EDQUOT EEXIST ELOOP EMLINK ENOENT ENOMEM ENOSPC ENOTDIR EPERM EROFS EXDEV",
    ),
    call(
        "rename",
        "EACCES EBUSY EDQUOT EINVAL EISDIR ELOOP ENOENT ENOMEM ENOSPC ENOTDIR EPERM EROFS EXDEV",
    ),
    call("statx", "EACCES EBADF EFAULT EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR"),
    call("unlink", "EACCES EBUSY EISDIR ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS"),
    call("rt_sigaction", "EFAULT EINVAL"),
    call(
        "rmdir",
        "EACCES EBUSY EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR ENOTEMPTY EPERM EROFS",
    ),
];

const RECEIVING: &str = "EAGAIN EBADF ECONNREFUSED ECONNRESET EFAULT EHOSTUNREACH EINTR EINVAL EIO \
    ENETUNREACH ENOMEM ENOTCONN ENOTSOCK ETIMEDOUT";

const SENDING: &str = "EACCES EAGAIN EALREADY EBADF ECONNRESET EDESTADDRREQ EFAULT EHOSTUNREACH \
    EINTR EINVAL EISCONN EMSGSIZE ENETUNREACH ENOBUFS ENOMEM ENOTCONN ENOTSOCK EOPNOTSUPP EPIPE \
    ETIMEDOUT";

const ACCEPTING: &str = "EAGAIN EBADF ECONNABORTED EFAULT EHOSTDOWN EHOSTUNREACH EINTR EINVAL \
    EMFILE ENETDOWN ENETUNREACH ENFILE ENOBUFS ENOMEM ENONET ENOPROTOOPT ENOSR ENOTSOCK EOPNOTSUPP \
    EPERM EPROTO EPROTONOSUPPORT ESOCKTNOSUPPORT ETIMEDOUT";

/// Calls of the thread that do not belong to the loop. They concern memory, threads, locks and
/// process ids.
pub(crate) const IGNORED: [&str; 18] = [
    "brk",
    "clone3",
    "futex",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "exit_group",
    "sched_yield",
    "clock_gettime",
    "sched_getaffinity",
];
