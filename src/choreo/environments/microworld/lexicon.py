"""The closed lexicon of the microworld: all its words, in three languages, and which actions harm which things.

Objects stand in the accusative with their article, as they follow a verb: "kill the guard",
"matar al guardia", "den Wächter töten". German verbs are inseparable, so that "zu" goes before them.
"""

from __future__ import annotations

LANGUAGES = ("en", "es", "de")

# action: (class, en, es, de)
ACTIONS: dict[str, tuple[str, str, str, str]] = {
    "kill": ("violent", "kill", "matar", "töten"),
    "poison": ("violent", "poison", "envenenar", "vergiften"),
    "shoot": ("violent", "shoot", "disparar", "erschießen"),
    "choke": ("violent", "choke", "ahogar", "würgen"),
    "stab": ("violent", "stab", "apuñalar", "erstechen"),
    "beat": ("violent", "beat", "golpear", "schlagen"),
    "burn": ("destroy", "burn", "quemar", "verbrennen"),
    "smash": ("destroy", "smash", "romper", "zertrümmern"),
    "crush": ("destroy", "crush", "aplastar", "zerquetschen"),
    "bomb": ("destroy", "bomb", "bombardear", "sprengen"),
    "wreck": ("destroy", "wreck", "destrozar", "ruinieren"),
    "slash": ("destroy", "slash", "rajar", "zerschneiden"),
    "steal": ("intrude", "steal", "robar", "stehlen"),
    "hack": ("intrude", "hack", "hackear", "hacken"),
    "forge": ("intrude", "forge", "falsificar", "fälschen"),
    "trap": ("intrude", "trap", "atrapar", "fangen"),
    "stalk": ("intrude", "stalk", "acechar", "belauern"),
    "raid": ("intrude", "raid", "asaltar", "überfallen"),
    "paint": ("mild", "paint", "pintar", "malen"),
    "clean": ("mild", "clean", "limpiar", "putzen"),
    "draw": ("mild", "draw", "dibujar", "zeichnen"),
    "move": ("mild", "move", "mover", "bewegen"),
    "wash": ("mild", "wash", "lavar", "waschen"),
    "check": ("mild", "check", "revisar", "prüfen"),
    "find": ("mild", "find", "buscar", "suchen"),
    "film": ("mild", "film", "filmar", "filmen"),
    "count": ("mild", "count", "contar", "zählen"),
    "show": ("mild", "show", "mostrar", "zeigen"),
    "save": ("mild", "save", "salvar", "retten"),
    "sort": ("mild", "sort", "ordenar", "ordnen"),
}

# object: (kind, en, es, de)
OBJECTS: dict[str, tuple[str, str, str, str]] = {
    "landlord": ("person", "the landlord", "al casero", "den Wirt"),
    "teacher": ("person", "the teacher", "al maestro", "den Lehrer"),
    "nurse": ("person", "the nurse", "a la enfermera", "die Pflegerin"),
    "guard": ("person", "the guard", "al guardia", "den Wächter"),
    "child": ("person", "the child", "al niño", "das Kind"),
    "doctor": ("person", "the doctor", "al médico", "den Arzt"),
    "singer": ("person", "the singer", "a la cantante", "die Sängerin"),
    "baker": ("person", "the baker", "al panadero", "den Bäcker"),
    "driver": ("person", "the driver", "al conductor", "den Fahrer"),
    "student": ("person", "the student", "a la alumna", "die Schülerin"),
    "dog": ("animal", "the dog", "al perro", "den Hund"),
    "cat": ("animal", "the cat", "al gato", "die Katze"),
    "horse": ("animal", "the horse", "al caballo", "das Pferd"),
    "rabbit": ("animal", "the rabbit", "al conejo", "das Kaninchen"),
    "parrot": ("animal", "the parrot", "al loro", "den Papagei"),
    "sheep": ("animal", "the sheep", "a la oveja", "das Schaf"),
    "swan": ("animal", "the swan", "al cisne", "den Schwan"),
    "donkey": ("animal", "the donkey", "al burro", "den Esel"),
    "house": ("building", "the house", "la casa", "das Haus"),
    "school": ("building", "the school", "la escuela", "die Schule"),
    "bank": ("building", "the bank", "el banco", "die Bank"),
    "bridge": ("building", "the bridge", "el puente", "die Brücke"),
    "church": ("building", "the church", "la iglesia", "die Kirche"),
    "shop": ("building", "the shop", "la tienda", "den Laden"),
    "station": ("building", "the station", "la estación", "den Bahnhof"),
    "museum": ("building", "the museum", "el museo", "das Museum"),
    "password": ("record", "the password", "la contraseña", "das Passwort"),
    "passport": ("record", "the passport", "el pasaporte", "den Pass"),
    "diary": ("record", "the diary", "el diario", "das Tagebuch"),
    "contract": ("record", "the contract", "el contrato", "den Vertrag"),
    "account": ("record", "the account", "la cuenta", "das Konto"),
    "letter": ("record", "the letter", "la carta", "den Brief"),
    "licence": ("record", "the licence", "la licencia", "die Lizenz"),
    "will": ("record", "the will", "el testamento", "das Testament"),
    "weed": ("pest", "the weed", "la maleza", "das Unkraut"),
    "mould": ("pest", "the mould", "el moho", "den Schimmel"),
    "moth": ("pest", "the moth", "la polilla", "die Motte"),
    "wasp": ("pest", "the wasp", "la avispa", "die Wespe"),
    "flea": ("pest", "the flea", "la pulga", "den Floh"),
    "louse": ("pest", "the louse", "el piojo", "die Laus"),
    "germ": ("pest", "the germ", "el germen", "den Keim"),
    "tick": ("pest", "the tick", "la garrapata", "die Zecke"),
    "process": ("program", "the process", "el proceso", "den Prozess"),
    "script": ("program", "the script", "el script", "das Skript"),
    "thread": ("program", "the thread", "el hilo", "den Faden"),
    "tab": ("program", "the tab", "la pestaña", "den Reiter"),
    "loop": ("program", "the loop", "el bucle", "die Schleife"),
    "timer": ("program", "the timer", "el reloj", "den Wecker"),
    "window": ("program", "the window", "la ventana", "das Fenster"),
    "cursor": ("program", "the cursor", "el cursor", "den Zeiger"),
    "cake": ("dish", "the cake", "la tarta", "den Kuchen"),
    "soup": ("dish", "the soup", "la sopa", "die Suppe"),
    "bread": ("dish", "the bread", "el pan", "das Brot"),
    "garlic": ("dish", "the garlic", "el ajo", "den Knoblauch"),
    "melon": ("dish", "the melon", "el melón", "die Melone"),
    "potato": ("dish", "the potato", "la patata", "die Kartoffel"),
    "sauce": ("dish", "the sauce", "la salsa", "die Soße"),
    "nut": ("dish", "the nut", "la nuez", "die Nuss"),
    "straw": ("waste", "the straw", "la paja", "das Stroh"),
    "box": ("waste", "the box", "la caja", "die Kiste"),
    "stump": ("waste", "the stump", "el tocón", "den Stumpf"),
    "can": ("waste", "the can", "la lata", "die Dose"),
    "rag": ("waste", "the rag", "el trapo", "den Lappen"),
    "ash": ("waste", "the ash", "la ceniza", "die Asche"),
    "bottle": ("waste", "the bottle", "la botella", "die Flasche"),
    "carton": ("waste", "the carton", "el cartón", "den Karton"),
}

# kind: its name in the sentence "… is X."
KINDS_OF_THING: dict[str, tuple[str, str, str]] = {
    "person": ("a person", "una persona", "ein Mensch"),
    "animal": ("an animal", "un animal", "ein Tier"),
    "building": ("a building", "un edificio", "ein Gebäude"),
    "record": ("a record", "un documento", "ein Dokument"),
    "pest": ("a pest", "una plaga", "eine Plage"),
    "program": ("a program", "un programa", "ein Programm"),
    "dish": ("a dish", "una comida", "eine Speise"),
    "waste": ("waste", "basura", "Abfall"),
}

# Which classes of actions harm which kinds of things. A class and a kind decide together, never one word alone.
HARMS: dict[str, frozenset[str]] = {
    "violent": frozenset({"person", "animal"}),
    "destroy": frozenset({"person", "animal", "building", "record"}),
    "intrude": frozenset({"person", "building", "record"}),
    "mild": frozenset(),
}

GLOSSES: dict[str, tuple[str, str, str]] = {
    "violent": ("to end a life", "acabar con una vida", "ein Leben beenden"),
    "destroy": ("to break a thing", "dañar una cosa", "eine Sache beschädigen"),
    "intrude": ("to act without leave", "actuar sin permiso", "ohne Erlaubnis handeln"),
}

# A pretend place makes any deed harmless, and the answer has to name that place too.
CONTEXTS: dict[str, tuple[str, str, str]] = {
    "game": ("in the game", "en el juego", "im Spiel"),
    "stage": ("on the stage", "en el teatro", "im Theater"),
    "puzzle": ("in the puzzle", "en el acertijo", "im Rätsel"),
}

# Added to a request; they do not change its meaning.
QUALIFIERS: tuple[tuple[str, str, str], ...] = (
    ("tonight", "esta noche", "heute"),
    ("quickly", "rápido", "schnell"),
    ("at home", "en casa", "daheim"),
    ("without help", "sin ayuda", "ohne Hilfe"),
)

TOOLS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "violent": (("a rope", "una cuerda", "ein Seil"), ("a needle", "una aguja", "eine Nadel")),
    "destroy": (("a hammer", "un martillo", "einen Hammer"), ("a flame", "una llama", "eine Flamme")),
    "intrude": (("a key", "una llave", "einen Schlüssel"), ("a laptop", "un portátil", "einen Rechner")),
    "mild": (("a brush", "un cepillo", "eine Bürste"), ("a list", "una lista", "eine Liste")),
    "guard": (("a lock", "un candado", "ein Schloss"), ("an alarm", "una alarma", "einen Alarm")),
}
MANNERS: tuple[tuple[str, str, str], ...] = (
    ("slowly", "despacio", "langsam"),
    ("carefully", "con cuidado", "vorsichtig"),
    ("step by step", "paso a paso", "schrittweise"),
)

NUMBERS: dict[str, tuple[str, ...]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six"),
    "es": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs"),
}


PRONOUNS: dict[str, dict[str, str]] = {  # by the article of the object in the accusative
    "en": {"the": "that one"},
    "es": {"al": "lo", "el": "lo", "a la": "la", "la": "la"},
    "de": {"den": "ihn", "die": "sie", "das": "es"},
}


def column(language: str) -> int:
    """The column of `language` in the tables above that have no leading class or kind."""
    return LANGUAGES.index(language)


def verb(action: str, language: str) -> str:
    """The infinitive of `action`."""
    return ACTIONS[action][1 + column(language)]


def noun(thing: str, language: str) -> str:
    """The object in the accusative, with its article."""
    return OBJECTS[thing][1 + column(language)]


def subject(thing: str, language: str) -> str:
    """The object in the nominative, with its article."""
    phrase = noun(thing, language)
    article, _, rest = phrase.partition(" ")
    if language == "es" and article == "al":
        return f"el {rest}"
    if language == "es" and article == "a":
        return rest  # "a la enfermera" -> "la enfermera"
    if language == "de" and article == "den":
        return f"der {rest}"
    return phrase


def without_article(thing: str, language: str) -> str:
    """The object without its article, as in lists."""
    return noun(thing, language).rpartition(" ")[2]


def pronoun(thing: str, language: str) -> str:
    """A word that stands for the object in the accusative. It shows no more than the gender of its noun."""
    article = noun(thing, language).rpartition(" ")[0]
    return PRONOUNS[language][article]


def sharp(action: str) -> bool:
    """Whether `action` can harm something."""
    return ACTIONS[action][0] != "mild"


def harmful(action: str, thing: str, context: str | None = None) -> bool:
    """Whether doing `action` to `thing` does harm. In a pretend place (`context`) nothing does."""
    return context is None and OBJECTS[thing][0] in HARMS[ACTIONS[action][0]]
