"""Language identification by script, by marker letters and by the model."""

import subprocess
import sys

import pytest

from indexer.language import declared_language, identify_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The committee met on Tuesday to discuss the new library.", "en"),
        ("Der Ausschuss traf sich am Dienstag, um über die Bibliothek zu sprechen.", "de"),
        ("Le comité s'est réuni mardi pour discuter de la nouvelle bibliothèque.", "fr"),
        ("Комитет собрался во вторник, чтобы обсудить новую библиотеку.", "ru"),
        ("Комітет зібрався у вівторок, щоб обговорити нову бібліотеку.", "uk"),
        ("委员会星期二开会讨论新图书馆。", "zh"),
        ("委員会は火曜日に新しい図書館について話し合った。", "ja"),
        ("위원회는 화요일에 새 도서관을 논의했다.", "ko"),
        ("คณะกรรมการประชุมเมื่อวันอังคาร", "th"),
        ("اجتمعت اللجنة يوم الثلاثاء لمناقشة المكتبة الجديدة.", "ar"),
        ("کمیته روز سه‌شنبه برای بحث درباره کتابخانه جدید تشکیل جلسه داد.", "fa"),
        ("समिति ने मंगलवार को नए पुस्तकालय पर चर्चा की।", "hi"),
        ("Η επιτροπή συνεδρίασε την Τρίτη.", "el"),
        ("הוועדה התכנסה ביום שלישי.", "he"),
        ("კომიტეტი სამშაბათს შეიკრიბა.", "ka"),
        ("Kamati ilikutana Jumanne kujadili maktaba mpya ya mji wetu.", "sw"),
        ("ماڻهو سڄي ڄمار سکندو رهي ٿو", "sd"),
        ("我哋今日去咗圖書館", "yue"),
        ("數據庫系統的部署很重要。", "zh"),
        ("Panitia bertemu pada hari Selasa untuk membahas perpustakaan yang baru.", "id"),
        ("Jawatankuasa itu bersidang kerana perpustakaan baharu hendaklah dibuka.", "ms"),
        (
            "I tūtaki te komiti i te Tūrei ki te kōrero mō tētahi whare pukapuka hou, ā, i tae katoa ngā tāngata.",
            "mi",
        ),
        ("እቲ ሽማግለ ብዛዕባ ሓድሽ ቤተ መጻሕፍቲ ንምዝታይ ተኣኪቡ።", "ti"),
        ("ኮሚቴው ማክሰኞ ስለ አዲሱ ቤተ መጻሕፍት ለመወያየት ተሰበሰበ።", "am"),
        ("数据库 iPhone", "zh"),
        ("12345 !? 😀", None),
        ("", None),
    ],
)
def test_identifies(text, language):
    assert identify_language(text) == language


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("de", "de"), ("de-AT", "de"), ("zh-Hant", "zh"), ("PT_br", "pt"), (" ckb ", "ckb"),
        ("und", None), ("english", None), ("", None), ("x", None), (None, None), (5, None), (["de"], None),
    ],
)  # fmt: skip
def test_a_language_tag_is_reduced_to_its_code(tag, language):
    assert declared_language(tag) == language


def test_a_short_arabic_word_is_never_english():
    assert identify_language("سلام") in {"ar", "fa", "ps", "ug", "ur"}


def test_the_model_is_loaded_only_when_needed():
    code = (
        "import sys; from indexer.language import identify_language; identify_language('안녕'); "
        "assert 'py3langid' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
