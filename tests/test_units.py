from __future__ import annotations

import pytest

from toolkit.units import (
    bandwidth_text,
    bytes_text,
    memory_text,
    parse_bandwidth,
    parse_bytes,
    parse_duration,
    parse_percent,
    parse_rate,
    rate_text,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8 GiB", 8 * 2**30),
        ("8GiB", 8 * 2**30),
        (" 512 MiB ", 512 * 2**20),
        ("1 TiB", 2**40),
        ("2.5 GB", 2_500_000_000),
        ("2.72 GB", 2_720_000_000),
        ("64 kB", 64_000),
        ("64 KB", 64_000),
        ("64 KiB", 65_536),
        ("0 B", 0),
        ("1.1 GiB", 1_181_116_006),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "'8' has no unit; write it like '8 GiB'"),
        ("", "'' is not a number with a unit; write it like '8 GiB'"),
        ("eight GiB", "'eight GiB' is not a number with a unit; write it like '8 GiB'"),
        ("-8 GiB", "'-8 GiB' is negative; write it like '8 GiB'"),
        ("8 G", "'8 G' has an unknown unit 'G'; write it like '8 GiB'"),
        ("8 GIB", "'8 GIB' has an unknown unit 'GIB'; write it like '8 GiB'"),
        ("8 Gb", "'8 Gb' counts bits; bytes have a capital B, like '8 GiB'"),
        ("8 gb", "'8 gb' counts bits; bytes have a capital B, like '8 GiB'"),
        ("8 Gbit", "'8 Gbit' counts bits; bytes have a capital B, like '8 GiB'"),
        ("17 GB/s", "'17 GB/s' is a rate; a size is written like '8 GiB'"),
        ("1 Gbps", "'1 Gbps' is a rate; a size is written like '8 GiB'"),
        ("1e3 GiB", "'1e3 GiB' has an unknown unit 'e3 GiB'; write it like '8 GiB'"),
        ("٨ GiB", "'٨ GiB' is not a number with a unit; write it like '8 GiB'"),
        ("9" * 400 + " B", None),
    ],
)
def test_what_is_no_size(text: str, message: str | None) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bytes(text)
    assert message is None or str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("17 GB/s", 17e9),
        ("17.1GB/s", 17.1e9),
        ("1 GiB/s", float(2**30)),
        ("204.8 GB/s", 204.8e9),
        ("0 B/s", 0.0),
    ],
)
def test_rates(text: str, bytes_per_s: float) -> None:
    assert parse_bandwidth(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("17 GB", "'17 GB' is a size; a rate is written like '17 GB/s'"),
        ("17 Gbit/s", "'17 Gbit/s' counts bits; bytes have a capital B, like '17 GB/s'"),
        ("17 Gbps", "'17 Gbps' counts bits; bytes have a capital B, like '17 GB/s'"),
        ("17 Gb/s", "'17 Gb/s' counts bits; bytes have a capital B, like '17 GB/s'"),
        ("17 GBps", "'17 GBps' is not a rate; write it like '17 GB/s'"),
        ("4267 MT/s", "'4267 MT/s' has an unknown unit 'MT'; write it like '17 GB/s'"),
        ("17", "'17' has no unit; write it like '17 GB/s'"),
        ("-17 GB/s", "'-17 GB/s' is negative; write it like '17 GB/s'"),
    ],
)
def test_what_is_no_rate(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bandwidth(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (8 * 2**30, "8 GiB"),
        (768 * 2**20, "768 MiB"),
        (2_500_000_000, "2500 MB"),
        (24684084 * 1024, "24684084 KiB"),
    ],
)
def test_text_is_read_back_exactly(n_bytes: int, text: str) -> None:
    assert bytes_text(n_bytes) == text
    assert parse_bytes(text) == n_bytes


def test_every_size_is_read_back() -> None:
    for n_bytes in (0, 1, 1023, 1025, 10**9 + 1, 2**40 + 1, 4 * 2**40):
        assert parse_bytes(bytes_text(n_bytes)) == n_bytes


def test_rates_are_read_back() -> None:
    assert bandwidth_text(17.1e9) == "17.1 GB/s"
    assert parse_bandwidth(bandwidth_text(204.8e9)) == 204.8e9


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("2min", 120), ("7d", 604_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", "'30' has no unit; write it like '30m'"),
        ("-5m", "'-5m' is negative; write it like '30m'"),
        ("0s", "'0s' is no time at all; write it like '30m'"),
        ("3w", "'3w' has an unknown unit 'w'; write it like '90s', '30m', '2h' or '7d'"),
        ("soon", "'soon' is not a number with a unit; write it like '30m'"),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "fraction"), [("3%", 0.03), ("0.5 %", 0.005), ("0%", 0.0)])
def test_percentages(text: str, fraction: float) -> None:
    assert parse_percent(text) == fraction


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.03", "'0.03' has no unit; write it like '3%'"),
        ("3‰", "'3‰' has an unknown unit '‰'; write it like '3%'"),
        ("-1%", "'-1%' is negative; write it like '3%'"),
    ],
)
def test_what_is_no_percentage(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_percent(text)
    assert str(caught.value) == message


def test_parse_rate() -> None:
    assert parse_rate("500 kB/s") == 500_000
    with pytest.raises(ValueError, match=r"'0 MB/s' sends nothing at all; write it like '2 MB/s'"):
        parse_rate("0 MB/s")
    with pytest.raises(ValueError, match="is a size"):
        parse_rate("5 MB")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (1000, "1 kB"),
        (549_316, "549 kB"),
        (5_960_000, "5.96 MB"),
        (999_499_999, "999 MB"),
        (999_600_000, "1 GB"),
        (27_921_000_000, "27.9 GB"),
        (10**15, "1,000 TB"),
        (1.23456e16, "12,346 TB"),
    ],
)
def test_files_and_disks_are_worded_in_decimal_units(n_bytes: float, text: str) -> None:
    assert size_text(n_bytes) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (91_200_000, "87 MiB"),
        (768 * 2**20, "768 MiB"),
        (1023.9 * 2**20, "1 GiB"),
        (1010 * 2**20, "1,010 MiB"),
        (8_435_000_000, "7.86 GiB"),
        (64 * 2**30, "64 GiB"),
        (2**41, "2,048 GiB"),
    ],
)
def test_memory_is_worded_in_binary_units(n_bytes: float, text: str) -> None:
    assert memory_text(n_bytes) == text


def test_rates_are_worded_as_what_they_carry() -> None:
    assert [rate_text(rate) for rate in (0, 500_000, 1.1e9)] == ["0 B/s", "500 kB/s", "1.1 GB/s"]
