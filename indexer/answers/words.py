"""Words that depend on the language: how to say that the collection is silent, and how questions ask.

Question words ask but are not evidence: a passage that contains "how many" does not thereby say how many.
The same holds for articles, pronouns and the like, which are listed with them.
Languages are ISO 639-1 codes; one that is missing here gets the English sentence and no question words.
"""

import re

SILENCE = {
    "ar": "لا تذكر المجموعة ذلك.",
    "bn": "সংগ্রহে এ বিষয়ে কিছু বলা নেই।",
    "cs": "Sbírka to neuvádí.",
    "da": "Samlingen oplyser det ikke.",
    "de": "Die Sammlung sagt dazu nichts.",
    "el": "Η συλλογή δεν το αναφέρει.",
    "en": "The collection does not say.",
    "es": "La colección no lo dice.",
    "fa": "مجموعه در این باره چیزی نمی‌گوید.",
    "fi": "Kokoelma ei kerro tätä.",
    "fr": "La collection ne le dit pas.",
    "he": "האוסף אינו אומר זאת.",
    "hi": "संग्रह में यह नहीं बताया गया है।",
    "hu": "A gyűjtemény erről nem ír.",
    "id": "Koleksi ini tidak menyebutkannya.",
    "it": "La raccolta non lo dice.",
    "ja": "コレクションには記載がありません。",
    "ko": "컬렉션에 해당 내용이 없습니다.",
    "nl": "De verzameling zegt dit niet.",
    "pl": "Kolekcja tego nie podaje.",
    "pt": "A coleção não o diz.",
    "ro": "Colecția nu spune acest lucru.",
    "ru": "В коллекции об этом не сказано.",
    "sv": "Samlingen säger inget om det.",
    "sw": "Mkusanyiko hausemi.",
    "th": "คอลเลกชันไม่ได้ระบุไว้",
    "tr": "Koleksiyon bunu belirtmiyor.",
    "uk": "У колекції про це не сказано.",
    "vi": "Bộ sưu tập không nói về điều này.",
    "zh": "集合中没有提到。",
}

_QUESTION_WORDS = """
ar ما ماذا من متى أين كيف كم لماذا هل أي أية التي الذي هو هي كان كانت في على إلى عن و
bn কি কী কে কখন কোথায় কেন কিভাবে কীভাবে কত কোন
cs co kdo kdy kde jak proč kolik který která které jaký jaká jaké je byl byla jsou a v ve na do z ze s se si
   to tom ten ta o k od po
da hvad hvem hvornår hvor hvordan hvorfor hvilken hvilket hvilke er var den det de en et og i på af til for
   med han hun
de was wer wen wem wann wo wohin woher wie warum wieso weshalb welche welcher welches welchen welchem
   wieviel viele wessen ist war sind waren hat hatte wurde wurden der die das den dem des ein eine einen
   einem einer eines und er sie es ihn ihm ihr in im an am auf von vom zu zum zur mit für bei aus nach sich
el τι ποιος ποια ποιο πότε πού πώς γιατί πόσο πόσα πόσοι είναι ήταν ο η το οι τα του της των τον την και σε
   στο στη από με για
en what who whom whose when where which why how many much is are was were do does did has have had can could
   name tell me about the a an of in on at to for by from with and or it its he him his she her they them
   their this that these those there be been as
es qué que quién quiénes cuándo cuando dónde donde cómo como por cuál cuáles cuánto cuánta cuántos cuántas
   es son fue fueron era ha el la los las un una de del en a al y o con para su sus se lo le él ella
fa چه چی کی کجا چرا چگونه چطور چند کدام است بود آیا و در به از که را این آن با
fi mikä mitä kuka ketkä milloin koska missä miten miksi kuinka monta paljonko onko oli ovat ja se hän ne he
fr que quoi qui quand où comment pourquoi quel quelle quels quelles combien est sont était a t il elle ce qu
   le la les l un une des de du d en à au aux et ou dans par pour sur son sa ses se on ils elles
he מה מי מתי איפה היכן איך כיצד למה מדוע כמה איזה איזו האם של את על ב ו
hi क्या कौन किस किसने किसे कब कहाँ कहां कैसे क्यों कितना कितने कितनी है हैं था थे थी का के की में से को ने
   पर और यह वह ये वे इस उस
hu mi ki mikor hol hogyan miért hány mennyi melyik milyen volt a az és egy
id apa siapa kapan di mana dimana bagaimana mengapa kenapa berapa banyak yang adalah dari ke dan itu ini
   dengan untuk pada
it che cosa chi quando dove come perché quale quali quanto quanta quanti quante è sono era fu ha il lo la i
   gli le l un una uno di del della dei delle in nel nella a al e o con per su si da
nl wat wie wanneer waar hoe waarom welke welk hoeveel is was zijn waren de het een en of in op van te voor
   met door hij zij ze
pl co kto kogo kiedy gdzie jak dlaczego który która które jaki jaka jakie ile czy jest był była są w we na
   do z ze i o się to od po
pt que quê quem quando onde como por qual quais quanto quanta quantos quantas é são foi foram era o a os as
   um uma de do da dos das em no na nos nas e ou com para se ele ela
ro ce cine când unde cum care cât câtă câți câte este sunt era fost un o de la în și cu pe din
ru что кто кого кому чей когда где куда откуда как почему зачем какой какая какое какие какого каком сколько
   который которая был была было были ли и в во на с со к о об из у за по для от он она оно они его её их
   это
sv vad vem när var hur varför vilken vilket vilka många mycket är den det de en ett och i på av till för med
   han hon
sw nini nani lini wapi vipi kwa gani ngapi ni ya wa cha la na katika
tr ne kim kimin nerede nereye nasıl neden niçin niye hangi kaç kadar mi mı mu mü ve bir bu şu o de da ile
   için
uk що хто кого коли де куди звідки як чому який яка яке які скільки чи був була було були і й в у на з до
   про за від він вона воно вони його її їх це
vi gì nào ai khi đâu ở như thế tại sao bao nhiêu là có của và trong cho với được các những một
"""

# Written without spaces: looked for inside the question, longest first.
_UNSPACED = """
ja 何ですか とは何 ですか でしょうか いつ どこ だれ 誰 なぜ どうして どのように どの どれ いくつ いくら 何人
   何年 何 ますか ましたか
ko 무엇 언제 어디 누구 누가 왜 어떻게 어떤 어느 얼마나 얼마 몇 인가요 입니까 습니까 나요
th อะไร ใคร เมื่อไหร่ เมื่อไร เมื่อใด ที่ไหน ที่ใด อย่างไร ทำไม เท่าไหร่ เท่าไร กี่ หรือไม่ ไหม
zh 什么 甚么 什麼 谁 誰 何时 何時 什么时候 哪里 哪裡 哪儿 哪个 哪個 哪些 哪 为什么 為什麼 为何
   怎么 怎麼 怎样 如何 多少 几个 幾個 是否 吗 嗎 呢 是
"""


def _table(lines: str) -> dict[str, tuple[str, ...]]:
    rows = (row.split() for row in re.split(r"\n(?=\S)", lines.strip()))  # a longer list goes on, indented
    return {language: tuple(sorted(words, key=lambda w: (-len(w), w))) for language, *words in rows}


QUESTION_WORDS = {language: frozenset(words) for language, words in _table(_QUESTION_WORDS).items()}
UNSPACED_QUESTION_WORDS = tuple(
    sorted({word for words in _table(_UNSPACED).values() for word in words}, key=lambda w: (-len(w), w))
)


def silence(language: str | None) -> str:
    """ "The collection does not say." in the language, in English where we do not have the sentence."""
    return SILENCE.get((language or "en").split("-")[0].lower(), SILENCE["en"])


def says_silence(answer: str) -> bool:
    """Whether an answer is one of the sentences that mean "the collection is silent", and no more."""
    return _bare(answer) in {_bare(sentence) for sentence in SILENCE.values()}


def _bare(sentence: str) -> str:
    return re.sub(r"^\W+|\W+$", "", sentence).casefold()
